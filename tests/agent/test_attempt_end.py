"""The end of an attempt does not wait for ever for what the server does not take."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from task_specs import shell

from remotegpu.types.agent import ArtifactReply, AttemptLease, AttemptLogsReply, AttemptOutcome, AttemptResult
from remotegpu_agent.runtime import StillThere
from remotegpu_agent.tasks import attempt
from remotegpu_agent.tasks.folders import Folder, boottime
from remotegpu_agent.tasks.link import Link
from remotegpu_agent.tasks.runtime import End, Life, TaskRuntime


class Deaf:
    """A link and a runtime. The server never answers to what is in ``silent``."""

    def __init__(self, *silent: str, stop: bool = False, stays: bool = False) -> None:
        self.silent = silent
        self.stays = stays
        """What is left of it does not go away before its end was told."""
        self.stop = stop
        self.refused = asyncio.Event()
        self.said: list[str] = []

    async def _say(self, what: str) -> None:
        if what in self.silent:
            await asyncio.Event().wait()
        self.said.append(what)

    async def renew(self, *, ready: bool) -> tuple[AttemptLease, float]:
        lease = AttemptLease(
            lease_s=9, renew_in_s=9, fence_s=99, fence_grace_s=1, stop=self.stop, stop_reason=None, go=True
        )
        return lease, boottime()

    async def start(self, detail: str) -> None:
        await self._say("start")

    async def logs(self, sequence: int, data: str, *, truncated: bool) -> AttemptLogsReply:
        await self._say("logs")
        return AttemptLogsReply(next_sequence=sequence + 1, next_in_s=0)

    async def artifact(self, *, size_bytes: int, **_: Any) -> ArtifactReply:
        await self._say("artifact")
        return ArtifactReply(received_bytes=size_bytes, complete=True)

    async def complete(self, result: AttemptResult) -> None:
        await self._say("complete")

    async def release(self) -> None:
        await self._say("release")

    async def remove(self, folder: Folder) -> None:
        """Nothing runs."""
        if self.stays and "complete" not in self.said:
            raise StillThere("a process survives SIGKILL")

    async def look(self, folder: Folder) -> Life:
        return Life.ENDED

    async def wait_end(self, folder: Folder) -> None:
        """It has ended."""

    async def kill(self, folder: Folder) -> None:
        if self.stays:
            raise StillThere("a process survives SIGKILL")

    async def end_of(self, folder: Folder) -> End:
        return End(exit_code=0)

    def where(self, folder: Folder) -> str:
        return ""

    def note_lease(self, folder: Folder, **lease: float) -> None:
        folder.put_lease(lease)


def end(root: Path, server: Deaf, *, kept: bool = True) -> list[str]:
    """What an agent tells that finds an attempt which has ended, its result ``kept`` on disk or not yet."""
    spec, folder = shell("true"), Folder(root, "att-1")
    folder.store(spec)
    folder.prepare(spec)
    folder.mark_started()
    folder.log.write_text("line")
    (folder.output / "model").write_text("x")
    if kept:
        folder.put_result(
            AttemptResult(epoch=0, status=AttemptOutcome.SUCCEEDED, exit_code=0, reason="succeeded")
        )

    async def run() -> None:
        one = attempt.Attempt(
            spec,
            folder,
            runtime=cast("TaskRuntime", server),
            link=cast("Link", server),
            on_removed=lambda: None,
        )
        await asyncio.wait_for(one.run(), 10)

    asyncio.run(run())
    assert not folder.path.exists()
    return server.said


def test_server_that_takes_everything_gets_it_before_the_result(tmp_path: Path) -> None:
    assert end(tmp_path, Deaf()) == ["logs", "artifact", "complete", "release"]


@pytest.mark.parametrize(
    ("silent", "said", "lost"),
    [("logs", ["artifact", "complete", "release"], "output"),
     ("artifact", ["logs", "complete", "release"], "files")],
)  # fmt: skip
def test_server_that_does_not_take_it_gets_the_result_in_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    silent: str,
    said: list[str],
    lost: str,
) -> None:
    monkeypatch.setattr(attempt, "OUTPUT_S", 0.2)
    monkeypatch.setattr(attempt, "FILES_S", 0.2)
    with caplog.at_level(logging.ERROR):
        assert end(tmp_path, Deaf(silent)) == said
    assert [record.getMessage() for record in caplog.records] == [
        f"attempt {shell('true').id}: the rest of its {lost} is not kept: it took too long"
    ]


def test_stop_that_is_asked_meanwhile_shortens_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "STOPPED_S", 0.2)
    assert end(tmp_path, Deaf("artifact", stop=True)) == ["logs", "complete", "release"]


@pytest.mark.parametrize("kept", [True, False])
def test_what_does_not_go_away_holds_up_its_release_and_not_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kept: bool
) -> None:
    monkeypatch.setattr(attempt, "PAUSE_S", (0.05, 0.05))
    said = end(tmp_path, Deaf(stays=True), kept=kept)
    assert [what for what in said if what != "start"] == ["logs", "artifact", "complete", "release"]
