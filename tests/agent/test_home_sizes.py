"""What a home takes of the disk: real trees, compared with ``du``, and a walk that bothers nobody."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remotegpu.types.agent import HomeVolume
from remotegpu_agent import home_sizes, homes
from remotegpu_agent.home_sizes import Pace, Stopped, size_of
from remotegpu_agent.settings import Settings

FAST = Pace(cpu_share=0.9, disk_share=0.9)
MIB = 2**20


def du(home: Path) -> int:
    """Allocated bytes as everybody's tool counts them."""
    done = subprocess.run(
        ["du", "--summarize", "--one-file-system", "--block-size=1", str(home)],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout.split()[0])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "vol-1"
    made.mkdir()
    return made


def test_size_of_a_real_tree_is_what_du_says(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 8 * MIB)
    (home / "data").mkdir()
    (home / "data" / "one").write_bytes(b"x" * 3 * MIB)
    os.link(home / "data" / "one", home / "same")
    os.link(home / "data" / "one", home / "data" / "again")
    (home / "out").symlink_to(outside)
    (home / "data" / "loop").symlink_to(home)
    with (home / "sparse").open("wb") as sparse:
        sparse.truncate(10 * 2**30)
        sparse.write(b"x" * 4096)
    size = size_of(home, FAST)
    assert size == du(home)
    assert 3 * MIB <= size < 4 * MIB, "links once, nothing outside, a hole takes nothing"


def test_files_with_several_names_count_once_when_too_many_to_be_remembered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        (home / f"{number}").write_bytes(b"x" * MIB)
        os.link(home / f"{number}", home / f"{number}-again")
    monkeypatch.setattr(home_sizes, "MOST_LINKS", 2)
    assert size_of(home, FAST) == du(home)


def test_home_that_is_not_there_takes_nothing_and_one_that_is_a_file_is_not_known(
    home: Path, tmp_path: Path
) -> None:
    assert asyncio.run(home_sizes.measure(tmp_path / "none")) == 0
    (tmp_path / "file").write_text("x")
    assert "cannot be measured" in str(asyncio.run(home_sizes.measure(tmp_path / "file")))
    (tmp_path / "link").symlink_to(home)
    assert "cannot be measured" in str(asyncio.run(home_sizes.measure(tmp_path / "link")))


def test_directories_that_cannot_be_read_or_vanish_do_not_end_the_walk(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "kept", "locked"):
        (home / name).mkdir()
        (home / name / "file").write_bytes(b"x" * MIB)
    (home / "vanishes").write_bytes(b"x" * MIB)
    opened, scanned = os.open, os.scandir

    def open_(path: str, flags: int) -> int:
        if path.endswith("/gone"):
            raise FileNotFoundError(path)
        if path.endswith("/locked"):  # root, who runs these tests, reads everything
            raise PermissionError(path)
        return opened(path, flags)

    class Racing:
        """Removes a file after the directory was listed and before it is looked at."""

        def __init__(self, directory: int) -> None:
            self._entries = scanned(directory)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            found = list(self._entries)
            (home / "vanishes").unlink(missing_ok=True)
            return iter(found)

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "scandir", Racing)
    size = size_of(home, FAST)
    assert MIB <= size < 2 * MIB, "what is left is counted"


def test_walk_does_not_enter_another_file_system(home: Path) -> None:
    (home / "mounted").mkdir()
    (home / "file").write_bytes(b"x" * MIB)
    script = (
        'mount -t tmpfs none "$1/mounted" && head -c 5000000 /dev/zero > "$1/mounted/file" && '
        'python -c "import sys; from pathlib import Path; from remotegpu_agent.home_sizes import *; '
        'print(size_of(Path(sys.argv[1]), Pace(0.9, 0.9)))" "$1"'
    )
    path = {**os.environ, "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"}  # type: ignore[attr-defined]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(home)],
        capture_output=True,
        text=True,
        check=False,
        env=path,
    )
    if "ermission denied" in done.stderr or "not permitted" in done.stderr:
        pytest.skip("no right to mount here")
    assert MIB <= int(done.stdout) < 2 * MIB, done.stderr


def test_fifty_thousand_files_take_their_share_and_stall_nothing(home: Path) -> None:
    for number in range(50):
        (home / f"{number}").mkdir()
        for file in range(1000):
            os.close(os.open(home / f"{number}" / f"{file}", os.O_CREAT | os.O_WRONLY))

    async def measured() -> tuple[int | str, float, float]:
        latest, longest, took = time.monotonic(), 0.0, time.process_time()
        walk = asyncio.create_task(home_sizes.measure(home, Pace(cpu_share=0.3, disk_share=0.5)))
        while not walk.done():
            await asyncio.sleep(0.005)
            longest, latest = max(longest, time.monotonic() - latest), time.monotonic()
        return walk.result(), longest, time.process_time() - took

    started = time.monotonic()
    size, longest, cpu_s = asyncio.run(measured())
    assert size == du(home)
    assert longest < 0.5, "the agent's own loop goes on meanwhile"
    assert cpu_s < 0.8 * (time.monotonic() - started), "it pauses"


def test_agent_that_ends_does_not_wait_for_a_walk(home: Path) -> None:
    for number in range(2000):
        (home / f"{number}").touch()
    pauses = threading.Event()

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.set()
            return super().wait(timeout)

    pace = Pace(cpu_share=0.000001, stopping=Stopping())

    async def ended() -> None:
        walk = asyncio.create_task(home_sizes.measure(home, pace))
        assert await asyncio.to_thread(pauses.wait, 10), "the first pause lasts for hours"
        walk.cancel()
        await asyncio.gather(walk, return_exceptions=True)

    started = time.monotonic()
    asyncio.run(ended())
    assert time.monotonic() - started < 5
    with pytest.raises(Stopped):
        size_of(home, pace)


def test_place_of_a_home_is_unknown_where_its_root_is_missing_or_not_mounted(tmp_path: Path) -> None:
    root, shared = tmp_path / "homes", tmp_path / "shared"
    shared.mkdir()
    settings = Settings(url="", state_dir=tmp_path, home_root=root, shared_home_dir=shared)
    own, everywhere = (HomeVolume(volume_id="vol-1", shared=one) for one in (False, True))
    assert "is not there" in str(homes.place_of(settings, own))
    assert "is it mounted?" in str(homes.place_of(settings, everywhere))
    assert "is it mounted?" in str(homes.remove_home(settings, everywhere)), "that is no proof of absence"
    (shared / "vol-2").mkdir()
    (shared / "vol-1").mkdir()
    root.mkdir()
    assert homes.place_of(settings, own) == root / "vol-1"
    assert homes.remove_home(settings, everywhere) is None
    assert [one.name for one in shared.iterdir()] == ["vol-2"]
    assert "not one" in str(homes.place_of(settings, HomeVolume(volume_id="../vol-2", shared=True)))
