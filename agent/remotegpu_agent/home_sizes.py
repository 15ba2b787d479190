"""How much disk a home takes, found out so slowly that nobody notices.

Counted are allocated blocks, as ``du`` does: a sparse file counts for what it holds, a hard link once, a
symbolic link for itself. Nothing is followed out of the home: no link, no mount point. What cannot be read,
and what vanishes meanwhile, counts nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

BLOCK_BYTES = 512
"""Of ``st_blocks``, whatever the file system's own are."""
CPU_SHARE = 0.005
"""Of one core, while a walk goes on."""
DISK_SHARE = 0.2
"""Of the time, while a walk goes on: cold directories wait for the disk, not for the CPU."""
BATCH_S = 0.002
"""So much is done at a stretch; the agent's other work waits no longer for the interpreter."""
MOST_LINKS = 100_000
"""Files with several names that are remembered; of more, each name counts for its part."""


class Stopped(Exception):
    """The agent ends before the walk does."""


@dataclass(frozen=True)
class Pace:
    """Pauses a walk so that it takes no more than its shares, and ends it on demand."""

    cpu_share: float = CPU_SHARE
    disk_share: float = DISK_SHARE
    stopping: threading.Event = field(default_factory=threading.Event)

    def pauses(self) -> Iterator[None]:
        """Each step may take a pause; raises :class:`Stopped`."""
        cpu, wall = time.thread_time(), time.monotonic()
        while True:
            yield
            if time.monotonic() - wall < BATCH_S:
                continue
            worked, passed = time.thread_time() - cpu, time.monotonic() - wall
            pause = max(worked * (1 / self.cpu_share - 1), passed * (1 / self.disk_share - 1))
            if self.stopping.wait(pause):
                raise Stopped
            cpu, wall = time.thread_time(), time.monotonic()


async def measure(home: Path, pace: Pace | None = None) -> int | str:
    """Bytes that the home takes, 0 where there is none yet; or why they are not known. Runs in a thread."""
    pace = pace or Pace()
    try:
        return await asyncio.to_thread(size_of, home, pace)
    except OSError as error:
        return f"The home cannot be measured: {error}"
    finally:
        pace.stopping.set()


def size_of(home: Path, pace: Pace) -> int:
    """The walk itself. Raises ``OSError`` where not even the home's own directory can be read."""
    try:
        top = os.lstat(home)
    except FileNotFoundError:
        return 0
    pauses = pace.pauses()
    count = _Count(top.st_dev)
    count.add(top)
    waiting = [str(home)]
    while waiting:
        path = waiting.pop()
        try:
            waiting.extend(_directory(path, count, pauses))
        except FileNotFoundError:
            continue
        except OSError as error:
            if path == str(home):
                raise
            count.unreadable += 1
            log.debug("%s is not counted: %s", path, error)
    if count.unreadable:
        log.warning("%d directories of home %s are not counted", count.unreadable, home.name)
    return round(count.total_bytes)


def _directory(path: str, count: _Count, pauses: Iterator[None]) -> list[str]:
    """Count what one directory holds; its own directories on the same file system."""
    inside: list[str] = []
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(opened).st_dev != count.device:
            return inside  # somebody put another file system, or a link to one, in its place
        with os.scandir(opened) as entries:
            for entry in entries:
                next(pauses)
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if found.st_dev != count.device:
                    continue
                count.add(found)
                if entry.is_dir(follow_symlinks=False):
                    inside.append(f"{path}/{entry.name}")
    finally:
        os.close(opened)
    return inside


class _Count:
    """Bytes so far."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.total_bytes = 0.0
        self.unreadable = 0
        self._names_left: dict[int, int] = {}

    def add(self, found: os.stat_result) -> None:
        takes = found.st_blocks * BLOCK_BYTES
        if found.st_nlink == 1 or _is_directory(found):
            self.total_bytes += takes
        elif found.st_ino in self._names_left:
            self._seen_again(found.st_ino)
        elif len(self._names_left) < MOST_LINKS:
            self._names_left[found.st_ino] = found.st_nlink - 1
            self.total_bytes += takes
        else:
            self.total_bytes += takes / found.st_nlink

    def _seen_again(self, inode: int) -> None:
        self._names_left[inode] -= 1
        if not self._names_left[inode]:
            del self._names_left[inode]


def _is_directory(found: os.stat_result) -> bool:
    """Directories have many links, and no second name."""
    return found.st_mode & 0o170000 == 0o040000
