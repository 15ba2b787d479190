"""A program of somebody else, for the type checkers: it is never run."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import datetime
from typing import assert_type

import remotegpu
from remotegpu.testing import asgi_client, blocking_asgi_client
from remotegpu.types.environments import Environment, EnvironmentStatus, EnvironmentUsage
from remotegpu.types.events import Event
from remotegpu.types.hosts import Gpu, Host
from remotegpu.types.quotas import Quota


def blocking(name: str) -> str | None:
    with remotegpu.Client("https://gpu.example.org", "rgu_x_y", timeout_s=10, max_retries=1) as client:
        made = client.environments.create(name=name, image="base", gpus=1, env={"SEED": "1"})
        ready = client.environments.wait_ready(made.id, progress=lambda seen: print(seen.status))
        assert_type(ready, Environment)
        assert_type(ready.status, EnvironmentStatus)
        assert_type(ready.started_at, datetime | None)
        for state in client.environments.watch(ready.id):
            assert_type(state, Environment)
        for piece in client.environments.follow(ready.id):
            assert_type(piece, str)
        for event in client.events.watch(after="0", subject_type="environment"):
            assert_type(event, Event)
        for gpu in client.gpus.list(free=True):
            assert_type(gpu, Gpu)
        page = client.hosts.list(limit=10)
        assert_type(page.items, list[Host])
        following = page.next_page()
        if following is not None:
            assert_type(following.items, list[Host])
        assert_type(client.environments.usage(ready.id), EnvironmentUsage)
        assert_type(client.quotas.mine(), Quota)
        with client.on_behalf_of("ada") as ada:
            assert_type(ada, remotegpu.Client)
        return ready.address


async def waiting(name: str) -> None:
    async with remotegpu.AsyncClient() as client:
        made = await client.environments.create(name=name, image="base", idempotency_key="once")
        assert_type(await client.environments.wait_stopped(made.id), Environment)
        async with aclosing(client.environments.watch(made.id)) as states:
            async for state in states:
                assert_type(state, Environment)
        async for image in await client.images.list():
            print(image.name)


@remotegpu.function(image="base", gpus=1)
def length(text: str, *, times: int = 1) -> int:
    remotegpu.report_progress(0.5, "half")
    return len(text) * times


def functions() -> None:
    assert_type(length("abc"), int)
    assert_type(length.remote("abc", times=2), int)
    future = length.submit("abc")
    assert_type(future, remotegpu.RemoteFuture[int])
    future.add_done_callback(lambda ended: print(ended.task_id))
    assert_type(future.result(timeout=10), int)
    for result in length.map(["a", "b"], max_parallel=1):
        assert_type(result, int)
    print(remotegpu.attach(future.task_id).done())


def errors() -> None:
    try:
        blocking("work")
    except remotegpu.QuotaExceeded as error:
        print(error.detail, error.hint, error.data["limit"], error.http_status, error.request_id)
    except (remotegpu.NoCapacity, remotegpu.Unavailable) as error:
        assert_type(error.retry_after_s, float | None)
    except remotegpu.WaitFailed as error:
        print(error.reason, error.log_tail)
    except remotegpu.RemoteGPUError as error:
        print(error)


async def app(scope: object, receive: object, send: object) -> None:
    print(scope, receive, send)


def in_tests() -> None:
    assert_type(asgi_client(app), remotegpu.AsyncClient)
    with blocking_asgi_client(app, "rgu_x_y") as client:
        assert_type(client, remotegpu.Client)


if __name__ == "__main__":
    asyncio.run(waiting("work"))
