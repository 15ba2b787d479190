"""Files that tasks leave: in pieces, checked, listed, downloaded, removed."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from task_outputs import running, text_of, write

import remotegpu
from remotegpu.testing import asgi_client
from remotegpu.types.tasks import ArtifactDownload
from remotegpu_agent.tasks.artifacts import upload
from remotegpu_agent.tasks.link import Link
from remotegpu_server.loops import Work
from remotegpu_server.outputs import loop
from remotegpu_server.testing import Actors


async def put(
    agent: HollowAgent,
    attempt: str,
    path: str,
    data: bytes,
    *,
    offset: int = 0,
    whole: bytes | None = None,
    **more: Any,
) -> httpx.Response:
    whole = data if whole is None else whole
    given = {"size_bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()} | more
    return await agent.client.put(
        f"/v1/agent/attempts/{attempt}/artifacts",
        headers=agent.headers | {"Content-Type": "application/octet-stream"},
        params={"epoch": agent.epoch, "path": path, "offset": offset} | given,
        content=data,
    )


async def listed(fleet: Fleet, headers: dict[str, str], task: str, **params: Any) -> list[dict[str, Any]]:
    answer = await fleet.client.get(f"/v1/tasks/{task}/artifacts", headers=headers, params=params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def test_file_arrives_in_pieces_once_and_is_shown_when_it_is_whole(
    fleet: Fleet, actors: Actors
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    whole = b"abc{[" * 1000
    first = await put(agent, attempt, "m/a.bin", whole[:2000], whole=whole)
    assert first.json() == {"received_bytes": 2000, "complete": False}
    gap = await put(agent, attempt, "m/a.bin", whole[3000:], offset=3000, whole=whole)
    assert gap.json() == {"received_bytes": 2000, "complete": False}
    assert await listed(fleet, ada.headers, task) == []
    twice = await asyncio.gather(
        *(put(agent, attempt, "m/a.bin", whole[2000:], offset=2000, whole=whole) for _ in range(4))
    )
    assert {one.status_code for one in twice} == {200}
    assert (await put(agent, attempt, "empty", b"")).json() == {"received_bytes": 0, "complete": True}
    assert [one["path"] for one in await listed(fleet, ada.headers, task)] == ["empty", "m/a.bin"]
    page = await fleet.client.get(f"/v1/tasks/{task}/artifacts?limit=1", headers=ada.headers)
    rest = await listed(fleet, ada.headers, task, cursor=page.json()["next_cursor"])
    assert [one["path"] for one in rest] == ["m/a.bin"]
    other = await put(agent, attempt, "m/a.bin", b"other")
    assert (other.status_code, other.json()["error"]) == (409, "state_conflict")


async def test_wrong_checksum_begins_anew_and_another_file_takes_the_place_of_an_unfinished_one(
    fleet: Fleet, actors: Actors
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    wrong = await put(agent, attempt, "a", b"spoilt", whole=b"sample")
    assert wrong.status_code == 409
    assert await listed(fleet, ada.headers, task) == []
    assert (await put(agent, attempt, "a", b"sample")).json()["complete"]
    await put(agent, attempt, "b", b"01234", whole=b"0123456789")
    assert (await put(agent, attempt, "b", b"new")).json()["complete"]
    (found,) = await listed(fleet, ada.headers, task, path="b")
    assert found["size_bytes"] == 3


@pytest.mark.parametrize(
    "path", ["../a", "/etc/passwd", "a/../b", "a//b", "a\r\nX-Evil: 1", "a\x00", ".", "b/"]
)
async def test_path_outside_of_output_is_refused(fleet: Fleet, actors: Actors, path: str) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    _, attempt = await running(fleet, ada, agent)
    assert (await put(agent, attempt, path, b"x")).status_code == 422


async def test_files_are_bounded_and_refused_for_others_and_after_the_release(
    fleet: Fleet, actors: Actors
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    await fleet.client.patch(
        "/v1/settings/tasks.artifacts_max_bytes", headers=fleet.admin, json={"value": 10}
    )
    assert (await put(agent, attempt, "a", b"12345678")).status_code == 200
    assert (await put(agent, attempt, "b", b"12345678")).status_code == 413
    assert (await put(agent, attempt, "c", bytes(2**20 + 1))).status_code == 413
    other = await fleet.host("h2", gpus=1)
    assert (await put(other, attempt, "d", b"1")).json()["error"] == "attempt_mismatch"
    await agent.complete(attempt)
    assert (await put(agent, attempt, "e", b"1")).status_code == 200
    await agent.attempt(attempt, "release")
    assert (await put(agent, attempt, "f", b"1")).json()["error"] == "attempt_final"
    bob = await actors.user("bob")
    (file, _) = await listed(fleet, ada.headers, task)
    hidden = await fleet.client.get(f"/v1/tasks/{task}/artifacts/{file['id']}", headers=bob.headers)
    assert hidden.status_code == 404


async def test_agent_is_told_the_cap_with_its_claim(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    await fleet.client.patch(
        "/v1/settings/tasks.artifacts_max_bytes", headers=fleet.admin, json={"value": 10}
    )
    await fleet.client.post("/v1/tasks", headers=ada.headers, json={"image": "base", "command": ["train"]})
    (attempt,) = await agent.claim()
    assert attempt["artifacts_max_bytes"] == 10


async def test_download_is_an_attachment_with_ranges_and_a_tag(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    await put(agent, attempt, 'd/é "x".html', b"0123456789")
    (file,) = await listed(fleet, ada.headers, task)
    url = f"/v1/tasks/{task}/artifacts/{file['id']}"

    async def get(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await fleet.client.get(url, headers=ada.headers | named)

    whole = await get()
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["content-disposition"] == (
        "attachment; filename=\"_ _x_.html\"; filename*=UTF-8''%C3%A9%20%22x%22.html"
    )
    assert whole.headers["x-content-type-options"] == "nosniff"
    tag = whole.headers["etag"]
    assert tag == f'"{file["sha256"]}"'
    part = await get(Range="bytes=2-4", If_Range=tag)
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert (await get(Range="bytes=-3")).content == b"789"
    assert (await get(Range="bytes=7-")).content == b"789"
    for ignored in ("bytes=50-", "bytes=5-2", "bytes=-", "lines=1-2", "bytes=0-1,3-4"):
        assert (await get(Range=ignored)).content == b"0123456789"
    assert (await get(Range="bytes=7-", If_Range='"old"')).content == b"0123456789"
    assert (await get(If_None_Match=tag)).status_code == 304


async def test_sdk_resumes_a_download_and_refuses_a_wrong_one(
    fleet: Fleet, actors: Actors, app: FastAPI, tmp_path: Path
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    whole = bytes(range(256)) * 20
    await put(agent, attempt, "m/model.bin", whole)
    async with asgi_client(app, ada.secret) as client:
        (file,) = (await client.tasks.artifacts(task)).items
        part = tmp_path / f"model.bin.{file.sha256[:12]}.part"
        part.write_bytes(whole[:1000])
        seen: list[ArtifactDownload] = []
        found = await client.tasks.download_artifact(file, tmp_path, progress=seen.append)
        assert (found, found.read_bytes()) == (tmp_path / "model.bin", whole)
        assert seen[-1].received_bytes == len(whole)
        assert not part.exists()
        (tmp_path / f"again.{file.sha256[:12]}.part").write_bytes(b"x" * 1000)
        with pytest.raises(remotegpu.UnexpectedAnswer, match="checksum"):
            await client.tasks.download_artifact(file, tmp_path / "again", progress=False)
        assert not (tmp_path / "again").exists()


async def test_output_of_attempts_that_ended_long_ago_is_removed(
    fleet: Fleet, actors: Actors, work: Work, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    old, gone = await running(fleet, ada, agent)
    await write(agent, gone, 0, b"old\n")
    await put(agent, gone, "a", b"x")
    await agent.complete(gone)
    await agent.attempt(gone, "release")
    new, stays = await running(fleet, ada, agent)
    await write(agent, stays, 0, b"new\n")
    async with app.state.database.sessions() as db:
        await db.execute(
            sa.text("UPDATE attempts SET finished_at = now() - interval '31 days' WHERE id = :id"),
            {"id": gone},
        )
        await db.commit()
    await loop.remove_old(work)
    answer = await fleet.client.get(f"/v1/tasks/{old}/logs", headers=ada.headers)
    assert (answer.status_code, "long ago" in answer.json()["detail"]) == (404, True)
    assert await listed(fleet, ada.headers, old) == []
    left = [path for path in app.state.settings.blob_dir.rglob("*") if path.is_file()]
    assert [path.name for path in left] == [stays]
    assert await text_of(fleet, ada, new) == b"new\n"


class _Sync:
    """The agent's session, answered at once."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    async def until_answered(self, _what: str, call: Any, *, longest_pause_s: float) -> Any:
        return await call()


async def test_agent_uploads_regular_files_and_follows_no_link(
    fleet: Fleet, actors: Actors, app: FastAPI, tmp_path: Path
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task, attempt = await running(fleet, ada, agent)
    await put(agent, attempt, "taken", b"another")
    output, outside = tmp_path / "output", tmp_path / "outside"
    for folder in (output / "deep", outside):
        folder.mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    large = bytes(range(256)) * 2**13
    (output / "deep" / "model.bin").write_bytes(large)
    (output / "empty").touch()
    (output / "taken").write_bytes(b"mine")
    (output / "bad\nname").touch()
    (output / "link").symlink_to(outside / "secret")
    (output / "folder").symlink_to(outside)
    os.mkfifo(output / "pipe")
    async with asgi_client(app, agent.credential) as client:
        link = Link(client.agent, _Sync(agent.epoch), attempt)  # type: ignore[arg-type]
        await upload(output, link, max_bytes=2**30)
        await upload(output, link, max_bytes=2**30)
        assert not link.refused.is_set()
    files = await listed(fleet, ada.headers, task)
    assert [(one["path"], one["size_bytes"]) for one in files] == [
        ("deep/model.bin", len(large)),
        ("empty", 0),
        ("taken", 7),
    ]
    assert files[0]["sha256"] == hashlib.sha256(large).hexdigest()
