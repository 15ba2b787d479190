"""Folders of attempts: gone at the end, whatever their task left in them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from remotegpu_agent.settings import Settings
from remotegpu_agent.sync import Sync
from remotegpu_agent.tasks import folders
from remotegpu_agent.tasks.claims import Tasks
from remotegpu_agent.tasks.folders import Folder
from remotegpu_agent.tasks.link import AttemptApi
from remotegpu_agent.tasks.runtime import TaskRuntime

CLOSED = """
import os, sys
from pathlib import Path
from remotegpu_agent.tasks.folders import Folder
root = Path(sys.argv[1])
if os.geteuid() == 0:
    os.chown(root, 65534, 65534)
    os.setuid(65534)
folder = Folder(root, "att-1")
deep = folder.output / "a" / "b"
deep.mkdir(parents=True)
(deep / "file").write_text("x")
(deep / "link").symlink_to("/etc")
deep.chmod(0)
deep.parent.chmod(0o500)
folder.remove()
print(sorted(os.listdir(root)))
"""


def test_folders_that_a_task_closed_are_removed_by_an_agent_without_root(tmp_path: Path) -> None:
    root = tmp_path / "attempts"
    root.mkdir()
    for parent in (tmp_path, *tmp_path.parents[:3]):  # one more where tests run side by side
        parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(root)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_folder_that_cannot_be_deleted_is_out_of_the_way_until_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> None:
        raise OSError("busy")

    folder = Folder(tmp_path, "att-1")
    folder.path.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", refuse)
        folder.remove()
    assert folders.stored(tmp_path) == []
    assert os.listdir(tmp_path) == [".removing-att-1"]
    folders.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_removal_that_is_repeated_finds_nothing_to_do(tmp_path: Path) -> None:
    Folder(tmp_path, "att-1").remove()


def test_folder_that_cannot_be_read_does_not_keep_the_others_from_being_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forever(self: Tasks) -> None:
        await asyncio.Event().wait()

    for name in ("_claim_forever", "_measure", "_remove_strays", "_keep_guard"):
        monkeypatch.setattr(Tasks, name, forever)
    root = tmp_path / "attempts"
    (root / "att-1" / "attempt.json").mkdir(parents=True)  # reading it raises
    (root / "att-2").mkdir()
    (root / ".removing-att-3").mkdir()
    tasks = Tasks(
        api=cast("AttemptApi", None),
        sync=cast("Sync", None),
        runtime=cast("TaskRuntime", None),
        settings=Settings(url="http://nobody", state_dir=tmp_path, home_root=tmp_path),
        gpu_memory=lambda _: {},
    )

    async def run() -> None:
        running = asyncio.create_task(tasks.run())
        while os.listdir(root) != ["att-1"]:
            await asyncio.sleep(0.01)
            assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 10))
