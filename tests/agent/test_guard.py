"""The guard by itself: what it says, and what becomes of its log."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest

from remotegpu_agent.settings import Settings
from remotegpu_agent.sync import Sync
from remotegpu_agent.tasks import guard, guarding
from remotegpu_agent.tasks.claims import Tasks
from remotegpu_agent.tasks.link import AttemptApi
from remotegpu_agent.tasks.runtime import TaskRuntime


def test_engine_that_is_away_is_told_once_for_each_attempt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        for name in ("one", "two"):
            assert guard.signal_container(name, 15, str(tmp_path / "no.sock"))
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in said] == ["one:", "two:"]


@pytest.mark.parametrize(("size", "kept"), [(guard.LOG_BYTES + 1, 0), (100, 100)])
def test_long_log_is_emptied_when_a_guard_starts(tmp_path: Path, size: int, kept: int) -> None:
    log = tmp_path / "guard.log"
    log.write_bytes(b"x" * size)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guarding.PROGRAM), str(tmp_path), ""], stdout=output
        )
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not (tmp_path / "guard.lock").exists():
            time.sleep(0.02)
        while time.monotonic() < deadline and log.stat().st_size != kept:
            time.sleep(0.02)
        assert log.stat().st_size == kept
    finally:
        child.kill()
        child.wait()


def test_state_folder_without_room_for_the_lock_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = guarding.Guard(tmp_path / "gone", engine=None)
    with caplog.at_level(logging.ERROR):
        keeper.ensure()
        keeper.ensure()
    assert len(caplog.records) == 1


def test_agent_ends_loudly_when_nobody_keeps_the_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Tasks) -> None:
        raise RuntimeError("the keeper broke")

    async def forever(self: Tasks) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Tasks, "_keep_guard", broken)
    for name in ("_claim_forever", "_measure", "_remove_strays"):
        monkeypatch.setattr(Tasks, name, forever)
    tasks = Tasks(
        api=cast("AttemptApi", None),
        sync=cast("Sync", None),
        runtime=cast("TaskRuntime", None),
        settings=Settings(url="http://nobody", state_dir=tmp_path, home_root=tmp_path),
        gpu_memory=lambda _: {},
    )
    with pytest.raises(RuntimeError, match="the keeper broke"):
        asyncio.run(asyncio.wait_for(tasks.run(), 10))
