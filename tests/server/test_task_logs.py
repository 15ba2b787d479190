"""The output of tasks: pieces in, ranges and streams out, nothing lost or doubled."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from task_outputs import running, text_of, write

import remotegpu
from remotegpu.errors import WaitFailed
from remotegpu_server.testing import Actors, LiveServer


async def test_pieces_are_stored_once_in_order_and_a_gap_is_asked_for(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    assert (await write(agent, attempt, 0, b"one\n"))["next_sequence"] == 1
    assert (await write(agent, attempt, 0, b"one\n"))["next_sequence"] == 1, "again"
    assert (await write(agent, attempt, 3, b"four\n"))["next_sequence"] == 1, "a gap"
    twice = await asyncio.gather(*(write(agent, attempt, 1, b"\xff\x00two\n") for _ in range(5)))
    assert [one["next_sequence"] for one in twice] == [2] * 5
    assert await text_of(fleet, ada, task) == b"one\n\xff\x00two\n"
    assert await text_of(fleet, ada, task, offset=4, limit=2) == b"\xff\x00"
    assert await text_of(fleet, ada, task, tail_bytes=4) == b"two\n"
    assert await text_of(fleet, ada, task, offset=500) == b""
    large = await agent.attempt(attempt, "logs", sequence=2, data=base64.b64encode(bytes(2**20 + 1)).decode())
    assert (large.status_code, large.json()["error"]) == (413, "payload_too_large")
    assert (await write(agent, attempt, 2, bytes(2**20)))["next_sequence"] == 3
    wrong = await agent.attempt(attempt, "logs", sequence=3, data="no base64!")
    assert wrong.status_code == 422


async def test_output_in_flight_is_taken_after_the_end_and_refused_after_the_release(
    fleet: Fleet, actors: Actors
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    await agent.complete(attempt)
    assert (await write(agent, attempt, 0, b"last words\n"))["next_sequence"] == 1
    await agent.attempt(attempt, "release")
    assert (await write(agent, attempt, 0, b"last words\n"))["next_sequence"] == 1, "a repeat"
    late = await agent.attempt(attempt, "logs", sequence=1, data="")
    assert (late.status_code, late.json()["error"]) == (409, "attempt_final")
    assert await text_of(fleet, ada, task) == b"last words\n"


async def test_pieces_of_others_and_of_past_sessions_are_refused(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    other = await fleet.host("h2", gpus=1)
    foreign = await other.attempt(attempt, "logs", sequence=0, data="")
    assert (foreign.status_code, foreign.json()["error"]) == (409, "attempt_mismatch")
    stale = await agent.attempt(attempt, "logs", sequence=0, data="", epoch=agent.epoch - 1)
    assert (stale.status_code, stale.json()["error"]) == (409, "epoch_stale")
    bob = await actors.user("bob")
    hidden = await fleet.client.get(f"/v1/tasks/{task}/logs", headers=bob.headers)
    assert hidden.status_code == 404


@pytest.mark.parametrize("by", ["server", "agent"])
async def test_output_above_the_cap_is_dropped_with_a_mark(fleet: Fleet, actors: Actors, by: str) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    cap = 2**16
    changed = await fleet.client.patch(
        "/v1/settings/tasks.log_cap_bytes", headers=fleet.admin, json={"value": cap}
    )
    assert changed.status_code == 200, changed.text
    data = b"x" * (cap if by == "agent" else cap + 1000)
    await write(agent, attempt, 0, data, truncated=by == "agent")
    assert (await write(agent, attempt, 1, b"more"))["next_sequence"] == 2, "the writer goes on"
    text = await text_of(fleet, ada, task)
    assert text.startswith(b"x" * cap + b"\n[RemoteGPU: output above 65536 bytes was dropped here")
    assert b"more" not in text
    tried = await fleet.client.get(f"/v1/tasks/{task}/attempts", headers=ada.headers)
    assert tried.json()["items"][0]["log_truncated"]


async def test_bytes_that_a_crash_left_behind_the_row_are_never_read(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    await write(agent, attempt, 0, b"one\n")
    await app.state.blobs.write(f"logs/{attempt}", offset=4, data=b"two and more\n")  # and no row
    assert await text_of(fleet, ada, task) == b"one\n"
    await write(agent, attempt, 1, b"two\n")
    assert await text_of(fleet, ada, task) == b"one\ntwo\n"


async def _begin(live: LiveServer, http: httpx.AsyncClient) -> tuple[HollowAgent, str, str]:
    """A task that runs, on a real server."""
    fleet = Fleet(client=http, admin=live.admin_headers)
    await fleet.image()
    agent = await fleet.host("h1", gpus=1)
    made = await http.post(
        "/v1/tasks", headers=fleet.admin, json={"image": "base", "command": ["x"], "max_retries": 0}
    )
    assert made.status_code == 201, made.text
    (attempt,) = await agent.claim()
    for verb in ("accept", "start"):
        assert (await agent.attempt(attempt["id"], verb)).status_code < 300
    return agent, made.json()["tasks"][0]["id"], attempt["id"]


async def _all(client: remotegpu.AsyncClient, task: str) -> str:
    return "".join([piece async for piece in client.tasks.follow_logs(task)])


async def test_followers_at_two_servers_miss_nothing_when_one_dies_between_file_and_row(
    live_server: LiveServer, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = LiveServer(database_url=database_url, folder=tmp_path_factory.mktemp("second"))
    second.start(
        REMOTEGPU_BLOB_DIR=str(live_server.folder / "blobs"),
        REMOTEGPU_SECRET_KEY_FILE=str(live_server.folder / "secrets" / "server.key"),
    )
    secret = live_server.admin_headers["Authorization"][7:]
    try:
        async with (
            httpx.AsyncClient(base_url=live_server.url, timeout=20) as http,
            remotegpu.AsyncClient(live_server.url, secret) as here,
            remotegpu.AsyncClient(second.url, secret) as there,
            asyncio.timeout(60),
        ):
            agent, task, attempt = await _begin(live_server, http)
            followers = [asyncio.create_task(_all(client, task)) for client in (here, there, there)]
            await write(agent, attempt, 0, "één\n".encode())
            live_server.kill()
            await asyncio.to_thread(live_server.start, REMOTEGPU_CRASH_AT="after_blob")
            with pytest.raises(httpx.HTTPError):
                await write(agent, attempt, 1, b"two\n")
            assert await asyncio.to_thread(live_server.wait_ended) == 137
            await asyncio.to_thread(live_server.start)
            assert (await write(agent, attempt, 1, b"two\n"))["next_sequence"] == 2
            await agent.complete(attempt, status="failed", exit_code=1, reason="exit_code")
            await write(agent, attempt, 2, b"three\n")
            await agent.attempt(attempt, "release")
            assert await asyncio.gather(*followers) == ["één\ntwo\nthree\n"] * 3
            with pytest.raises(WaitFailed, match="three"):
                await here.tasks.wait(task, check=True, progress=False)
    finally:
        second.stop()


async def test_follower_comes_back_where_it_was(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    await write(agent, attempt, 0, b"first\n")
    await agent.complete(attempt, status="failed", exit_code=1, reason="exit_code")
    await agent.attempt(attempt, "release")
    path = f"/v1/tasks/{task}/logs:follow"
    whole = await fleet.client.get(path, headers=ada.headers)
    assert whole.text.startswith("id: 1.0.0\n\nid: 1.0.6\nevent: output\ndata: Zmlyc3QK\n\nevent: done\n")
    rest = await fleet.client.get(path, headers=ada.headers | {"Last-Event-ID": "1.0.4"})
    assert rest.text.startswith("id: 1.0.6\nevent: output\ndata: dAo=\n\n")
    wrong = await fleet.client.get(path, headers=ada.headers | {"Last-Event-ID": "x"})
    assert wrong.status_code == 422
