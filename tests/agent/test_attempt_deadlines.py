"""Deadlines of an attempt that pass while its agent is frozen or away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest
from task_specs import shell

from remotegpu.types.agent import AttemptLease, AttemptLogsReply, AttemptResult, ClaimedAttempt
from remotegpu_agent.tasks import attempt
from remotegpu_agent.tasks.folders import Folder, boottime
from remotegpu_agent.tasks.link import Link
from remotegpu_agent.tasks.runtime import End, Life, TaskRuntime


class Stage:
    """A link to a server that takes everything, and a runtime with one attempt."""

    def __init__(self, life: Life, *, fence_s: float = 99.0, ends_after_s: float | None = None) -> None:
        self.life = life
        self.fence_s = fence_s
        self.ends_after_s = ends_after_s
        self.broken: list[str] = []
        """Calls that fail once each, in a way that nobody expects."""
        self.calls: list[str] = []
        self.result: AttemptResult | None = None
        self.refused = asyncio.Event()
        self.epoch = 1
        self._ended = asyncio.Event()
        if life is Life.ENDED:
            self._ended.set()

    def _break(self, call: str) -> None:
        if call in self.broken:
            self.broken.remove(call)
            raise RuntimeError(f"{call} is broken")

    async def accept(self) -> tuple[AttemptLease, float]:
        return await self.renew(ready=False)

    async def renew(self, *, ready: bool) -> tuple[AttemptLease, float]:
        self._break("lease")
        lease = AttemptLease(
            lease_s=9,
            renew_in_s=self.fence_s / 9,
            fence_s=self.fence_s,
            fence_grace_s=1,
            stop=False,
            stop_reason=None,
            go=True,
        )
        return lease, boottime()

    async def logs(self, sequence: int, data: str, *, truncated: bool) -> AttemptLogsReply:
        self._break("logs")
        return AttemptLogsReply(next_sequence=sequence + 1, next_in_s=0)

    async def complete(self, result: AttemptResult) -> None:
        self.result = result

    async def release(self) -> None:
        self.calls.append("release")

    async def prepare(self, spec: ClaimedAttempt, *_: Any) -> None:
        """It is there."""

    async def start(self, *words: Any) -> None:
        if len(words) > 1:  # the runtime's; the link's is told where it runs
            self.calls.append("start")
        else:
            self._break("start")

    def where(self, folder: Folder) -> str:
        return ""

    async def look(self, folder: Folder) -> Life:
        return self.life

    async def wait_end(self, folder: Folder) -> None:
        try:
            async with asyncio.timeout(self.ends_after_s):
                await self._ended.wait()
        except TimeoutError:
            self.life = Life.ENDED

    async def terminate(self, folder: Folder) -> None:
        self.calls.append("terminate")
        self.life = Life.ENDED
        self._ended.set()

    async def kill(self, folder: Folder) -> None:
        """Nothing is left."""

    async def end_of(self, folder: Folder) -> End:
        return End(exit_code=0, out_of_memory=False, peak_memory_bytes=None, search_path=None)

    async def remove(self, folder: Folder) -> None:
        """Nothing is left."""

    def note_lease(self, folder: Folder, **lease: float) -> None:
        folder.put_lease(lease)


def run(root: Path, stage: Stage, *, started_ago_s: float | None) -> AttemptResult:
    spec, folder = shell("true", timeout_s=60.0), Folder(root, "att-1")
    folder.store(spec)
    if started_ago_s is not None:
        folder.prepare(spec)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("remotegpu_agent.tasks.folders.boottime", lambda: boottime() - started_ago_s)
            folder.mark_started()

    async def go() -> None:
        one = attempt.Attempt(
            spec,
            folder,
            runtime=cast("TaskRuntime", stage),
            link=cast("Link", stage),
            on_removed=lambda: None,
        )
        await asyncio.wait_for(one.run(), 10)

    asyncio.run(go())
    assert stage.result is not None
    return stage.result


def test_agent_that_was_frozen_past_the_fence_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Folder.prepare

    def frozen(self: Folder, spec: ClaimedAttempt) -> None:
        time.sleep(0.6)
        prepare(self, spec)

    monkeypatch.setattr(Folder, "prepare", frozen)
    stage = Stage(Life.NOTHING, fence_s=0.5)
    assert run(tmp_path, stage, started_ago_s=None).reason == "lease_lost"
    assert stage.calls == ["release"]


def test_task_over_its_timeout_is_ended_as_soon_as_it_is_taken_up(tmp_path: Path) -> None:
    stage = Stage(Life.RUNNING)
    began = time.monotonic()
    assert run(tmp_path, stage, started_ago_s=100).reason == "timeout"
    assert stage.calls == ["terminate", "release"]
    assert time.monotonic() - began < 0.5


def test_task_that_ended_while_nobody_looked_keeps_its_end_after_its_timeout(tmp_path: Path) -> None:
    stage = Stage(Life.ENDED)
    assert run(tmp_path, stage, started_ago_s=100).reason == "succeeded"
    assert stage.calls == ["release"]


def test_renewal_that_fails_unexpectedly_is_loud_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attempt, "PAUSE_S", (0.1, 0.1))
    stage = Stage(Life.RUNNING, fence_s=1.5, ends_after_s=2.5)
    stage.broken = ["lease", "lease"]
    assert run(tmp_path, stage, started_ago_s=0).reason == "succeeded"
    said = f"attempt {shell('true').id}: its lease was not renewed"
    assert [record.getMessage() for record in caplog.records] == [said, said]


def test_renewal_that_never_works_ends_it_at_the_fence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "PAUSE_S", (0.1, 0.1))
    stage = Stage(Life.RUNNING)
    stage.broken = ["lease"] * 100
    spec, folder = shell("true"), Folder(tmp_path, "att-1")
    folder.store(spec)
    folder.put_lease({"fence_at": boottime() + 1, "grace_s": 1})
    assert run(tmp_path, stage, started_ago_s=0).reason == "lease_lost"
    assert stage.calls == ["terminate", "release"]


@pytest.mark.parametrize("call", ["start", "logs"])
def test_call_that_fails_unexpectedly_does_not_keep_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    monkeypatch.setattr(attempt, "PAUSE_S", (0.1, 0.1))
    stage = Stage(Life.RUNNING, ends_after_s=0.5)
    stage.broken = [call]
    spec, folder = shell("true"), Folder(tmp_path, "att-1")
    folder.store(spec)
    folder.log.write_text("line")
    assert run(tmp_path, stage, started_ago_s=0).reason == "succeeded"
    assert stage.broken == []
    assert any(record.exc_info for record in caplog.records), "it is loud"
