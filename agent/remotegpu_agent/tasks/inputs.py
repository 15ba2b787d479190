"""Fetches the file that an attempt reads, before it starts: in pieces, going on after any break, checked."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from remotegpu import errors
from remotegpu.types.agent import AttemptInput
from remotegpu.types.environments import Reason
from remotegpu_agent.runtime import StartRefused
from remotegpu_agent.tasks.link import Link

_BLOCK = 2**20
TRIES = 2
"""Of a file whose bytes arrived wrong."""


async def fetch(wanted: AttemptInput | None, target: Path, link: Link) -> None:
    """The file at its place, read-only, whole and right. Raises StartRefused, Refused."""
    if wanted is None or await asyncio.to_thread(target.exists):
        return
    try:
        for _ in range(TRIES):
            if await _fetched(wanted, target, link):
                return
    except errors.ApiError as error:
        raise StartRefused(Reason.START_FAILED, f"Its input cannot be fetched: {error}") from error
    except OSError as error:
        raise StartRefused(
            Reason.START_FAILED, f"Its input cannot be kept on this host: {error.strerror}."
        ) from error
    raise StartRefused(Reason.START_FAILED, "Its input arrived with a wrong checksum, twice.")


async def _fetched(wanted: AttemptInput, target: Path, link: Link) -> bool:
    """False: what arrived is wrong, and gone."""
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as file:
        offset = file.tell()
        while offset < wanted.size_bytes:
            data = await link.input(offset)
            if not data:
                break
            await asyncio.to_thread(file.write, data)
            offset += len(data)
    if offset == wanted.size_bytes and await asyncio.to_thread(_sha256, part) == wanted.sha256:
        part.chmod(0o444)
        part.replace(target)
        return True
    part.unlink()
    return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
