"""Watching states and following output: over faults, to the end, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import islice

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import remotegpu
from remotegpu import _protocol
from remotegpu._tail import GAP, Tail

from .conftest import TOKEN
from .samples import environment, event
from .scripted_server import Handler, ScriptedServer, Step, answers, refuses, says, streams

SIGN = b": keep-alive\n\n"
BEGIN = b"id: 7.0\n\n"


def told(position: str) -> bytes:
    return f"id: {position}\nevent: environment.status\ndata: {json.dumps(event(position))}\n\n".encode()


def paced(*parts: tuple[int, bytes]) -> Step:
    """A stream that sends each part when the server has seen so many requests, and then is cut."""

    def step(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for requests, part in parts:
            eventually(lambda wanted=requests: len(handler.server.seen) >= wanted)
            handler.wfile.write(part)
            handler.wfile.flush()
        handler.close_connection = True

    return step


def eventually(holds: Callable[[], bool], *, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_environment_is_seen_now_and_after_each_change_until_it_is_deleted(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(
        paced((1, BEGIN), (2, told("7.1") + told("7.2")), (3, SIGN), (4, told("7.3"))),
        answers(environment(status="pending")),
        answers(environment(status="starting")),
        answers(environment(status="starting")),  # a sign of life: looked, and nothing was new
        answers(environment(status="deleted")),
    )
    seen = [found.status for found in client.environments.watch("env1")]
    assert seen == ["pending", "starting", "deleted"]
    assert "subject_type=environment&subject_id=env1" in server.seen[0].path
    assert [one.path for one in server.seen[1:]] == ["/v1/environments/env1"] * 4, "one look for a batch"


def test_watch_goes_on_over_a_cut_a_restart_and_a_database_that_was_away(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(
        paced((1, BEGIN)),
        answers(environment(status="pending")),
        says(502, "restarting"),
        paced((3, b"event: end\ndata: unavailable\n\n")),
        paced((4, told("7.1"))),
        answers(environment(status="running")),
    )
    watch = client.environments.watch("env1")
    assert [found.status for found in islice(watch, 2)] == ["pending", "running"]
    watch.close()
    streams_seen = [seen for seen in server.seen if seen.path.startswith("/v1/events")]
    assert [seen.headers.get("last-event-id") for seen in streams_seen] == [None, "7.0", "7.0", "7.0"]


def test_watch_ends_with_the_token(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(streams(told("1") + b"event: end\ndata: token_invalid\n\n"), refuses(401, "token_invalid"))
    watch = client.events.watch()
    assert next(watch).id == "1"
    with pytest.raises(remotegpu.TokenInvalid):
        next(watch)


def test_watching_what_is_not_there_says_so_at_once(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(paced((1, BEGIN)), refuses(404, "not_found"))
    with pytest.raises(remotegpu.NotFound):
        next(client.environments.watch("env1"))


def test_host_is_seen_when_more_than_its_measurements_changed(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    def host(**fields: object) -> Step:
        return answers({**HOST, **fields})

    server.play(
        host(),
        paced((1, BEGIN), (3, SIGN), (4, told("7.1"))),
        host(),
        host(last_heartbeat_at="2026-11-24T02:00:10Z"),
        host(connection="unreachable", ready=False),
    )
    watch = client.hosts.watch("one")
    assert [found.connection for found in islice(watch, 2)] == ["online", "unreachable"]
    watch.close()


HOST = {
    **dict.fromkeys(
        ("not_ready_reason", "runtime_detail", "agent_version", "hostname", "address", "os", "driver_version",
         "cuda_version", "cpus", "memory_bytes", "cpus_free", "memory_free_bytes", "shared_home", "metrics",
         "ip_address", "operational_reason", "drain_deadline", "drained_at", "health_reason")
    ),
    "id": "h1", "name": "one", "labels": {}, "connection": "online", "operational": "available",
    "health": "healthy", "operational_since": "2026-11-24T02:00:00Z", "ready": True,
    "runtime": "docker", "simulated": False, "gpus_total": 1, "gpus_free": 1,
    "last_heartbeat_at": "2026-11-24T02:00:00Z", "created_at": "2026-11-24T02:00:00Z",
}  # fmt: skip


def test_hour_of_silence_is_no_reason_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(_protocol.time, "monotonic", lambda: now)
    reconnects = _protocol.Reconnects(give_up_after_s=300)
    reconnects.received()
    now = 3600.0  # the lid of the laptop was closed
    assert reconnects.pause_s(remotegpu.ConnectionFailed("gone")) >= 0
    now += 299
    assert reconnects.pause_s(remotegpu.ConnectionFailed("still gone")) >= 0
    now += 1
    with pytest.raises(remotegpu.ConnectionFailed):
        reconnects.pause_s(remotegpu.ConnectionFailed("still gone"))


def test_hour_of_signs_of_life_comes_to_the_next_event(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(*[streams(*[SIGN] * 60)] * 4, streams(told("1")))
    assert next(client.events.watch()).id == "1"
    assert len(server.seen) == 5


# Following output


def logs(text: str, *, live: bool = True) -> Step:
    return answers({"text": text, "truncated": False, "live": live})


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("_sync", "_async"):
        monkeypatch.setattr(f"remotegpu.{kind}.wait.FOLLOW_PAUSE_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_output_comes_piece_by_piece_until_the_environment_stops(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(
        answers(environment(status="pending")), logs("of an earlier start\n", live=False),
        answers(environment()), logs("one\ntwo\n"),
        answers(environment()), *[refuses(503, "unavailable")] * 4,
        answers(environment()), logs("one\ntwo\n"),
        answers(environment()), logs("two\nthree"),
        answers(environment(status="stopped")), logs("three\nfour\n", live=False),
    )  # fmt: skip
    assert list(client.environments.follow("env1")) == ["one\ntwo\n", "three", "\nfour\n"]


@given(
    lines=st.lists(st.text("abc", max_size=3), max_size=60),
    steps=st.lists(st.integers(0, 12), max_size=20),
)
def test_window_that_moves_by_less_than_its_size_loses_and_doubles_nothing(
    lines: list[str], steps: list[int]
) -> None:
    whole = "".join(f"{number}:{line}\n" for number, line in enumerate(lines))
    tail, end, found = Tail(), 0, ""
    for step in [*steps, len(whole)]:
        end = min(len(whole), end + step)
        found += tail.added(whole[max(0, end - 40) : end] if end < len(whole) else whole[-40:])
    moved = len(whole) - sum(steps) <= 20  # the last window, too, shares half of itself with the one before
    assert found == whole if moved else found.endswith(whole[-40:])


def test_window_that_does_not_touch_the_one_before_is_marked() -> None:
    tail = Tail()
    assert [tail.added(text) for text in ("a\nb\n", "x\ny\n", "", "x\ny\nz\n")] == [
        "a\nb\n", f"{GAP}x\ny\n", "", "z\n",
    ]  # fmt: skip


# Ending early


def open_to(server: ScriptedServer) -> int:
    connections = psutil.Process().net_connections("tcp4")
    port = server.server_port
    return sum(1 for one in connections if one.raddr and one.raddr.port == port and one.status != "TIME_WAIT")


def test_ctrl_c_while_watching_leaves_no_thread_and_no_socket(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(streams(told("1"), cut=False))
    before = {thread.ident for thread in threading.enumerate()}
    main = threading.get_ident()
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    found = []
    with pytest.raises(KeyboardInterrupt):
        for one in client.events.watch():
            found.append(one.id)
            timer.start()
    timer.join()
    assert found == ["1"]
    eventually(lambda: open_to(server) == 0)
    server.finished.set()  # the server's own thread for the connection ends
    eventually(lambda: {thread.ident for thread in threading.enumerate()} <= before)


def test_ctrl_c_while_waiting_leaves_the_client_usable(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(answers(environment(status="pending")), answers(environment()))

    def interrupt(_: object) -> None:
        if len(server.seen) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        client.environments.wait_ready("env1", progress=interrupt)
    assert client.environments.get("env1").status == "running"


def test_leaving_the_loop_closes_the_connection(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(streams(told("1"), cut=False))
    for _ in client.events.watch():
        break
    eventually(lambda: open_to(server) == 0)


async def test_cancelling_a_watch_leaves_no_task_and_no_socket(server: ScriptedServer) -> None:
    server.play(streams(told("1"), cut=False))
    async with remotegpu.AsyncClient(server.url, TOKEN) as client:
        got = asyncio.Event()

        async def watch() -> None:
            async for _ in client.events.watch():
                got.set()

        before = asyncio.all_tasks()
        task = asyncio.create_task(watch())
        await asyncio.wait_for(got.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before
        await asyncio.to_thread(eventually, lambda: open_to(server) == 0)


async def test_cancelling_a_wait_cancels_its_request(server: ScriptedServer) -> None:
    server.play(answers(environment(status="pending")), answers(environment()))
    async with remotegpu.AsyncClient(server.url, TOKEN) as client:
        seen = asyncio.Event()
        task = asyncio.create_task(client.environments.wait_ready("env1", progress=lambda _: seen.set()))
        await asyncio.wait_for(seen.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.environments.get("env1")).status == "running"
