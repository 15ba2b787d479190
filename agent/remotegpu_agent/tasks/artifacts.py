"""Uploads what an attempt left in ``/output``: regular files, in pieces, checked by the server.

The task chose every name, and may have left links and pipes: nothing is followed, and nothing is waited for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from remotegpu import errors
from remotegpu_agent.tasks.link import Link, Refused

log = logging.getLogger(__name__)

PIECE_BYTES = 2**20
MAX_FILES = 10_000
MAX_ENTRIES = 10 * MAX_FILES
"""Of any kind; a task may leave millions, and nobody waits until they are listed."""
TRIES = 2
"""Of a file whose bytes arrived wrong."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


async def upload(folder: Path, link: Link, *, max_bytes: int) -> None:
    """Everything that the server takes; what it does not take is logged and left out. Raises Refused."""
    given_up = threading.Event()
    try:
        room = max_bytes
        for path in await asyncio.to_thread(_files, folder):
            try:
                room -= await _upload(
                    folder, path, link, room=room, given_up=lambda: given_up.is_set() or link.refused.is_set()
                )
            except (errors.ApiError, OSError, UnicodeError) as error:
                log.warning("artifact %r is not kept: %s", path, error)
    finally:
        given_up.set()  # a thread that reads a file does not notice otherwise


def _files(folder: Path) -> list[str]:
    """In order. Of a folder with too many, whichever the disk names first."""
    found: list[str] = []
    for looked_at, entry in enumerate(_entries(folder)):
        if len(found) == MAX_FILES or looked_at == MAX_ENTRIES:
            log.warning("only %s artifacts of %s are kept: there are too many", len(found), folder)
            break
        if entry.is_file(follow_symlinks=False):
            found.append(os.path.relpath(entry.path, folder))
    return sorted(found)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    yield entry
        except FileNotFoundError:  # it was never started
            continue
        except OSError as error:
            log.warning("artifacts in %r are not kept: %s", place, error)


async def _upload(folder: Path, path: str, link: Link, *, room: int, given_up: Callable[[], bool]) -> int:
    """Answers how many bytes of the room it took."""
    path.encode()  # a name that is no UTF-8 has no way through JSON
    file = await asyncio.to_thread(_open, folder, path)
    if file is None:
        return 0
    try:
        for _ in range(TRIES):
            size = os.fstat(file).st_size
            if size > room:
                log.warning("artifact %r is not kept: it has %s bytes, and %s may follow", path, size, room)
                return 0
            sha256 = await asyncio.to_thread(_sha256, file, size, given_up)
            if await _send(file, path, size, sha256, link):
                return size
        log.warning("artifact %r is not kept: the server has another file of this path", path)
        return 0
    finally:
        os.close(file)


async def _send(file: int, path: str, size: int, sha256: str, link: Link) -> bool:
    """False: it is to be sent from the start, or another file has its place."""
    offset = 0
    while True:
        data = await asyncio.to_thread(os.pread, file, min(PIECE_BYTES, size - offset), offset)
        reply = await link.artifact(path=path, size_bytes=size, sha256=sha256, offset=offset, data=data)
        if reply is None:
            return False
        if reply.complete:
            return True
        offset = reply.received_bytes


def _open(folder: Path, path: str) -> int | None:
    """A regular file below the folder, without following a link anywhere on the way; ``None``: it is none."""
    *parents, name = path.split("/")
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parent in parents:
            deeper = os.open(parent, _OPEN | os.O_DIRECTORY, dir_fd=place)
            os.close(place)
            place = deeper
        if not stat.S_ISREG(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
            return None
        file = os.open(name, _OPEN, dir_fd=place)
    finally:
        os.close(place)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None


def _sha256(file: int, size: int, given_up: Callable[[], bool]) -> str:
    """Raises Refused when nobody waits for it any more."""
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(file, min(PIECE_BYTES, size - offset), offset):
        if given_up():
            raise Refused("the file is not wanted any more")
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
