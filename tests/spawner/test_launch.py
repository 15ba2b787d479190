"""Following a start, and the stops that must not get lost, against a server that misbehaves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from spawner.conftest import ENVIRONMENT, ScriptedServer, environment

from remotegpu import AsyncClient
from remotegpu.types.environments import Environment
from remotegpu_spawner import stopping
from remotegpu_spawner.errors import SpawnRefused
from remotegpu_spawner.launch import Launch, Overtaken
from remotegpu_spawner.options import Options

LOG = logging.getLogger(__name__)


async def at_once(request: Any) -> Environment:
    return await request


def launch(client: AsyncClient, **changes: Any) -> Launch:
    given: dict[str, Any] = {
        "client": client, "name": "default", "display_name": "", "wanted": Options(image="base"),
        "secret_env": {}, "note": lambda _: None, "send": at_once, "queue_wait_s": 60,
        "silence_limit_s": 60, "end_wait_s": 60, "keep_for": None,
    }  # fmt: skip
    return Launch(**given | changes)


async def test_follow_survives_a_silent_server_and_gives_the_address(
    server: ScriptedServer, client: AsyncClient
) -> None:
    answers = [
        httpx.ConnectError("down"),
        (503, "unavailable"),
        (429, "rate_limited"),
        ENVIRONMENT | {"status": "running", "address": "http://10.0.0.7:40001"},
    ]
    server.answer = lambda _: answers.pop(0)
    assert await launch(client).follow(environment()) == "http://10.0.0.7:40001"


async def test_follow_gives_up_when_the_silence_lasts(server: ScriptedServer, client: AsyncClient) -> None:
    server.answer = lambda _: (503, "unavailable")
    with pytest.raises(Exception, match="unavailable"):
        await launch(client, silence_limit_s=0).follow(environment())


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"status": "failed", "reason": "image_not_found", "message": "No such image."}, "image_not_found"),
        ({"status": "stopped"}, "stopped"),
        ({"status": "deleted"}, "stopped"),
        ({"status": "running", "address": "http://x:1", "generation": 2}, "superseded"),
    ],
)
async def test_follow_refuses_what_cannot_succeed_any_more(
    client: AsyncClient, server: ScriptedServer, state: dict[str, Any], reason: str
) -> None:
    server.answer = lambda _: ENVIRONMENT | state
    with pytest.raises(SpawnRefused) as refused:
        await launch(client).follow(environment())
    assert refused.value.reason == reason


async def test_waiting_too_long_leaves_the_queue_before_it_is_refused(
    server: ScriptedServer, client: AsyncClient
) -> None:
    waiting = environment(status="pending", reason="no_free_gpu", message="All 2 GPUs are in use.")
    with pytest.raises(SpawnRefused) as refused:
        await launch(client, queue_wait_s=-1).follow(waiting)
    assert "All 2 GPUs are in use." in refused.value.jupyterhub_message
    assert server.requests == ["POST /v1/environments/env-1:stop"]


async def test_other_wish_is_heard_while_it_waits_and_not_once_it_starts(
    server: ScriptedServer, client: AsyncClient
) -> None:
    waiting = environment(status="pending", reason="no_free_gpu")
    with pytest.raises(Overtaken) as overtaken:
        await launch(client, overtaken=lambda: True).follow(waiting)
    assert overtaken.value.environment is waiting
    server.answer = lambda _: ENVIRONMENT | {"status": "running", "address": "http://10.0.0.7:40001"}
    address = await launch(client, overtaken=lambda: True).follow(environment(status="starting"))
    assert address == "http://10.0.0.7:40001"


async def test_start_in_another_workspace_than_its_own_is_refused_and_stops_nothing(
    server: ScriptedServer, client: AsyncClient
) -> None:
    elsewhere = launch(client, wanted=Options(image="base", workspace="wsp-2"))
    with pytest.raises(SpawnRefused, match="workspace"):
        await elsewhere.begin(environment(status="running"))
    assert server.requests == []


async def test_start_waits_until_the_last_one_is_proven_gone(
    server: ScriptedServer, client: AsyncClient
) -> None:
    starts: list[Any] = [(409, "state_conflict"), (409, "state_conflict"), ENVIRONMENT | {"generation": 2}]
    server.answer = lambda line: starts.pop(0) if line.endswith(":start") else ENVIRONMENT
    begun = await launch(client).begin(environment(status="failed"))
    assert begun.generation == 2
    assert all(line.endswith(":start") for line in server.requests)


async def test_start_ends_an_earlier_one_that_still_runs_because_its_token_is_dead(
    server: ScriptedServer, client: AsyncClient
) -> None:
    await launch(client).begin(environment(status="running"))
    assert server.requests == ["POST /v1/environments/env-1:stop", "POST /v1/environments/env-1:start"]


async def test_start_that_never_gets_its_place_back_says_so(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.answer = lambda _: (409, "state_conflict")
    with pytest.raises(SpawnRefused, match="stopping") as refused:
        await launch(client, end_wait_s=-1).begin(environment(status="stopped"))
    assert "host has not confirmed" in refused.value.jupyterhub_message


async def test_late_stop_is_repeated_until_the_server_takes_it(
    server: ScriptedServer, client: AsyncClient
) -> None:
    stops: list[Any] = [httpx.ConnectError("down"), (500, "server_error"), ENVIRONMENT]
    taken = asyncio.Event()

    def answer(line: str) -> Any:
        found = stops.pop(0)
        if not stops:
            taken.set()
        return found

    server.answer = answer
    later(client, environment(status="running"), generation=1)
    await asyncio.wait_for(taken.wait(), 5)
    assert server.requests == ["POST /v1/environments/env-1:stop"] * 3


@pytest.mark.parametrize(
    ("found", "generation", "still_wanted"),
    [
        (environment(status="running", generation=2), 1, True),
        (environment(status="running"), 1, False),
        (environment(status="stopped"), 1, True),
        (None, 1, True),
    ],
    ids=["the next start", "wanted again", "ended by itself", "deleted"],
)
async def test_late_stop_leaves_alone(
    server: ScriptedServer,
    client: AsyncClient,
    found: Environment | None,
    generation: int,
    still_wanted: bool,
) -> None:
    later(client, found, generation=generation, still_wanted=still_wanted)
    await asyncio.gather(*stopping._background)
    assert server.requests == []


def later(
    client: AsyncClient, found: Environment | None, *, generation: int, still_wanted: bool = True
) -> None:
    async def find() -> Environment | None:
        return found

    stopping.later(client, find, generation=generation, still_wanted=lambda: still_wanted, log=LOG)


async def test_request_that_nobody_waits_for_any_more_is_followed_to_its_end() -> None:
    turned_up: list[Environment] = []
    answered = asyncio.Event()

    async def slow() -> Environment:
        await answered.wait()
        return environment()

    task = asyncio.ensure_future(slow())
    stopping.when_it_turns_up(task, turned_up.append)
    answered.set()
    await task
    await asyncio.sleep(0)
    assert [one.id for one in turned_up] == ["env-1"]


async def test_stop_waits_for_the_end_and_no_longer_than_asked(
    server: ScriptedServer, client: AsyncClient
) -> None:
    states: list[Any] = [httpx.ConnectError("down"), ENVIRONMENT, ENVIRONMENT | {"status": "stopped"}]
    server.answer = lambda _: states.pop(0)
    assert await stopping.until_gone(client, "env-1", timeout_s=5, log=LOG)
    server.answer = lambda _: ENVIRONMENT
    assert not await stopping.until_gone(client, "env-1", timeout_s=0.01, log=LOG)
    server.answer = lambda _: (404, "not_found")
    assert await stopping.until_gone(client, "env-1", timeout_s=5, log=LOG)
