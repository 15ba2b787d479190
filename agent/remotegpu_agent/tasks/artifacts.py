"""Uploads what an attempt left in ``/output``: regular files, in pieces, checked by the server.

The task chose every name, and may have left links and pipes: nothing is followed, and nothing is waited for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
from pathlib import Path

from remotegpu import errors
from remotegpu_agent.tasks.link import Link

log = logging.getLogger(__name__)

PIECE_BYTES = 2**20
MAX_FILES = 10_000
TRIES = 2
"""Of a file whose bytes arrived wrong."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


async def upload(folder: Path, link: Link) -> None:
    """Everything that the server takes; what it does not take is logged and left out. Raises Refused."""
    for path in await asyncio.to_thread(_files, folder):
        try:
            await _upload(folder, path, link)
        except (errors.ApiError, OSError, UnicodeError) as error:
            log.warning("artifact %r is not kept: %s", path, error)


def _files(folder: Path) -> list[str]:
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        found += [os.path.relpath(os.path.join(place, name), folder) for name in sorted(names)]
        if len(found) > MAX_FILES:
            log.warning("only the first %s artifacts of %s are kept", MAX_FILES, folder)
            break
    return found[:MAX_FILES]


async def _upload(folder: Path, path: str, link: Link) -> None:
    path.encode()  # a name that is no UTF-8 has no way through JSON
    file = await asyncio.to_thread(_open, folder, path)
    if file is None:
        return
    try:
        for _ in range(TRIES):
            size = os.fstat(file).st_size
            sha256 = await asyncio.to_thread(_sha256, file, size)
            if await _send(file, path, size, sha256, link):
                return
        log.warning("artifact %r is not kept: the server has another file of this path", path)
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


def _sha256(file: int, size: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(file, min(PIECE_BYTES, size - offset), offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
