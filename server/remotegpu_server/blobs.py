"""Bytes that are too many for a row, under names: the output and the artifacts of tasks.

The database is the truth: a row says how much of a blob counts, and is written after the bytes. What a crash
left behind that size is never read, and written over. :class:`Blobs` asks for nothing that an object store
cannot do with one object for each write; files below one folder are what there is now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Protocol

from remotegpu.errors import Unavailable

_NAME = re.compile(r"[a-z]+(/[A-Za-z0-9-]{1,80}){1,2}")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Blobs(Protocol):
    """Names are ours, as ``logs/<id of the attempt>``: never anything that a person or a task chose."""

    async def write(self, name: str, *, offset: int, data: bytes) -> None:
        """Bytes at a place; safe against a crash of the machine when it returns. Raises ``Unavailable``."""

    async def read(self, name: str, *, offset: int, size: int) -> bytes:
        """At most ``size`` bytes; less at the end, none of what is not there."""

    async def remove(self, name: str) -> None:
        """The blob, or all whose names begin with ``name/``; nothing when there is none.

        Raises ``OSError``.
        """


class FileBlobs:
    """Blobs as files. Several servers use one folder that they share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, name: str, *, offset: int, data: bytes) -> None:
        try:
            await asyncio.to_thread(_write, self._path(name), offset, data)
        except OSError as error:
            raise Unavailable(
                f"The server cannot store this now: {error.strerror}.", hint="Send it again later."
            ) from error

    async def read(self, name: str, *, offset: int, size: int) -> bytes:
        return await asyncio.to_thread(_read, self._path(name), offset, size)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(_remove, self._path(name))

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not the name of a blob: {name!r}")
        return self._folder / name


def _write(path: Path, offset: int, data: bytes) -> None:
    made = not path.exists()
    if made:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, _NEW, 0o600)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written
        os.fdatasync(handle)
    finally:
        os.close(handle)
    if made:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(handle, size, offset)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
