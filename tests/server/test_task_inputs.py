"""Files that are sent before the tasks that read them: in pieces, bounded, kept while they are needed."""

from __future__ import annotations

import asyncio
import hashlib
import io
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent

import remotegpu
from remotegpu.testing import asgi_client
from remotegpu.types.tasks import TaskInput
from remotegpu_server.blobs import FileBlobs
from remotegpu_server.loops import Work
from remotegpu_server.task_inputs import loop
from remotegpu_server.testing import Actors, Person

MIB = 2**20


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def put(
    fleet: Fleet, person: Person, data: bytes, *, offset: int = 0, whole: bytes | None = None
) -> httpx.Response:
    whole = data if whole is None else whole
    return await fleet.client.put(
        f"/v1/task-inputs/{sha256(whole)}",
        headers=person.headers | {"Content-Type": "application/octet-stream"},
        params={"size_bytes": len(whole), "offset": offset},
        content=data,
    )


async def submit(fleet: Fleet, person: Person, data: bytes, **more: Any) -> httpx.Response:
    body = {"image": "base", "command": ["train"], "input_sha256": sha256(data)} | more
    return await fleet.client.post("/v1/tasks", headers=person.headers, json=body)


async def fetched(agent: HollowAgent, attempt: str, *, offset: int = 0) -> httpx.Response:
    params = {"epoch": agent.epoch, "offset": offset}
    return await agent.client.get(f"/v1/agent/attempts/{attempt}/input", headers=agent.headers, params=params)


async def limit(fleet: Fleet, key: str, value: float) -> None:
    answer = await fleet.client.patch(f"/v1/settings/{key}", headers=fleet.admin, json={"value": value})
    assert answer.status_code == 200, answer.text


async def age(app: FastAPI, *statements: str) -> None:
    async with app.state.database.sessions() as db:
        for statement in statements:
            await db.execute(sa.text(statement))
        await db.commit()


def blobs(app: FastAPI) -> int:
    return sum(path.is_file() for path in app.state.settings.blob_dir.rglob("inputs/*"))


async def test_input_arrives_in_pieces_once_and_the_agent_of_its_task_reads_it(
    fleet: Fleet, actors: Actors
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    whole = bytes(range(256)) * 20
    assert (await submit(fleet, ada, whole)).json()["error"] == "not_found"
    assert (await put(fleet, ada, whole[:2000], whole=whole)).json()["received_bytes"] == 2000
    gap = await put(fleet, ada, whole[3000:], offset=3000, whole=whole)
    assert (gap.json()["received_bytes"], gap.json()["complete"]) == (2000, False)
    assert (await submit(fleet, ada, whole)).status_code == 404, "not all of it is there"
    rest = (put(fleet, ada, whole[2000:], offset=2000, whole=whole) for _ in range(4))
    assert {one.status_code for one in await asyncio.gather(*rest)} == {200}
    assert (await put(fleet, ada, b"", whole=whole)).json()["complete"]

    task = (await submit(fleet, ada, whole)).json()["tasks"][0]
    assert (task["input_sha256"], task["input_size_bytes"]) == (sha256(whole), len(whole))
    (attempt,) = await agent.claim()
    assert attempt["input"] == {"sha256": sha256(whole), "size_bytes": len(whole)}
    assert (await fetched(agent, attempt["id"])).content == whole
    assert (await fetched(agent, attempt["id"], offset=5000)).content == whole[5000:]
    assert (await fetched(agent, attempt["id"], offset=len(whole))).content == b""

    other = await fleet.host("h2", gpus=1)
    assert (await fetched(other, attempt["id"])).json()["error"] == "attempt_mismatch"
    agent.epoch -= 1
    assert (await fetched(agent, attempt["id"])).json()["error"] == "epoch_stale"
    agent.epoch += 1
    await agent.attempt(attempt["id"], "accept")
    await agent.attempt(attempt["id"], "start")
    await agent.complete(attempt["id"])
    await agent.attempt(attempt["id"], "release")
    assert (await fetched(agent, attempt["id"])).json()["error"] == "attempt_final"


async def test_content_of_another_person_is_not_there_for_anybody_else(fleet: Fleet, actors: Actors) -> None:
    ada, eve = await actors.user("ada"), await actors.user("eve")
    await put(fleet, ada, b"secret weights")
    assert (await submit(fleet, eve, b"secret weights")).status_code == 404
    assert (await put(fleet, eve, b"", whole=b"secret weights")).json()["received_bytes"] == 0


async def test_wrong_checksum_begins_anew(fleet: Fleet, actors: Actors) -> None:
    ada = await actors.user("ada")
    assert (await put(fleet, ada, b"spoilt", whole=b"sample")).json()["error"] == "state_conflict"
    assert (await submit(fleet, ada, b"sample")).status_code == 404
    assert (await put(fleet, ada, b"sample")).json()["complete"]


async def test_inputs_of_a_person_are_bounded_and_idle_ones_give_way(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    ada = await actors.user("ada")
    await limit(fleet, "tasks.input_max_bytes", MIB)
    await limit(fleet, "tasks.inputs_max_bytes", MIB)
    large = await put(fleet, ada, b"x", whole=b"x" * (MIB + 1))
    assert (large.status_code, large.json()["data"]) == (413, {"limit": MIB, "requested": MIB + 1})
    waits, idle, third = (letter * (MIB // 2) for letter in (b"w", b"i", b"t"))
    for one in (waits, idle):
        assert (await put(fleet, ada, one)).json()["complete"]
    task = (await submit(fleet, ada, waits, start_at="2040-01-01T00:00:00Z")).json()["tasks"][0]["id"]
    full = await put(fleet, ada, third)
    assert (full.status_code, full.json()["data"]["used"]) == (409, MIB)
    assert blobs(app) == 2, "what was used just now does not give way"
    await age(app, "UPDATE task_inputs SET used_at = now() - interval '11 minutes'")
    both = await asyncio.gather(put(fleet, ada, third), put(fleet, ada, b"f" * (MIB // 2)))
    assert sorted(one.status_code for one in both) == [200, 409], "one of them has room"
    assert (await put(fleet, ada, b"", whole=waits)).json()["complete"], "a task waits for it"
    room = (await fleet.client.get("/v1/task-inputs", headers=ada.headers)).json()
    assert room == {"max_bytes": MIB, "total_max_bytes": MIB, "total_used_bytes": MIB}
    assert blobs(app) == 2
    await fleet.client.post(f"/v1/tasks/{task}:stop", headers=ada.headers)


async def test_input_stays_while_a_task_needs_it_and_a_while_for_a_retry(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    ada = await actors.user("ada")
    long_ago = "UPDATE task_inputs SET used_at = now() - interval '2 days'"
    await put(fleet, ada, b"needed")
    task = (await submit(fleet, ada, b"needed", start_at="2040-01-01T00:00:00Z")).json()["tasks"][0]["id"]
    await put(fleet, ada, b"half", whole=b"half of it")
    await age(app, long_ago)
    await loop.remove_unneeded(work)
    assert blobs(app) == 1, "the task that waits needs it; nobody goes on with the other"
    await fleet.client.post(f"/v1/tasks/{task}:stop", headers=ada.headers)
    await loop.remove_unneeded(work)
    again = await fleet.client.post(f"/v1/tasks/{task}:retry", headers=ada.headers)
    assert again.status_code == 200, again.text
    await fleet.client.post(f"/v1/tasks/{task}:stop", headers=ada.headers)
    await age(app, long_ago, "UPDATE tasks SET finished_at = now() - interval '2 days'")
    await loop.remove_unneeded(work)
    assert blobs(app) == 0
    late = await fleet.client.post(f"/v1/tasks/{task}:retry", headers=ada.headers)
    assert (late.status_code, late.json()["error"]) == (404, "not_found")
    assert "no input" in late.json()["detail"]


async def test_removal_that_a_crash_broke_off_is_ended_later(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    ada = await actors.user("ada")
    await put(fleet, ada, b"doomed")
    await age(app, "UPDATE task_inputs SET removing_at = now() - interval '1 hour'")
    assert (await submit(fleet, ada, b"doomed")).status_code == 404
    assert (await put(fleet, ada, b"doomed")).json()["complete"], "the same content again is a new one"
    await loop.remove_unneeded(work)
    assert blobs(app) == 1
    assert (await submit(fleet, ada, b"doomed", start_at="2040-01-01T00:00:00Z")).status_code == 201


async def test_input_that_cannot_be_removed_keeps_no_other(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await actors.user("ada")
    for data in (b"one", b"two", b"three"):
        await put(fleet, ada, data)
    await age(app, "UPDATE task_inputs SET removing_at = now() - interval '1 hour'")
    removes, stuck = FileBlobs.remove, list[str]()

    async def remove(self: FileBlobs, name: str) -> None:
        if not stuck:
            stuck.append(name)
        if name in stuck:
            raise OSError("the disk is broken here")
        await removes(self, name)

    async def left() -> int:
        async with app.state.database.sessions() as db:
            return int(await db.scalar(sa.text("SELECT count(*) FROM task_inputs")) or 0)

    monkeypatch.setattr(FileBlobs, "remove", remove)
    await loop.remove_unneeded(work)
    assert (await left(), blobs(app)) == (1, 1)
    monkeypatch.undo()
    await loop.remove_unneeded(work)
    assert (await left(), blobs(app)) == (0, 0)


async def test_sdk_sends_what_is_missing_and_tells_how_far_it_is(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    ada = await actors.user("ada")
    whole = bytes(3 * MIB + 5)
    for at in range(0, MIB, MIB):
        await put(fleet, ada, whole[at : at + MIB], offset=at, whole=whole)
    seen: list[TaskInput] = []
    async with asgi_client(app, ada.secret) as client:
        sent = await client.task_inputs.upload(io.BytesIO(whole), progress=seen.append)
        assert sent.complete
        assert [one.received_bytes // MIB for one in seen] == [1, 2, 3, 3]
        seen.clear()
        await client.task_inputs.upload(io.BytesIO(whole), progress=seen.append)
        assert len(seen) == 1, "it is there"
        await limit(fleet, "tasks.input_max_bytes", MIB)
        with pytest.raises(remotegpu.PayloadTooLarge):
            await client.task_inputs.upload(io.BytesIO(whole + b"more"), progress=False)
