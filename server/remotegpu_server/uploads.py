"""Files that arrive in pieces: artifacts of attempts, and inputs of tasks.

A piece goes to the place where the row says that the last one ended, then one UPDATE counts it; nothing is
locked meanwhile. Of two equal pieces one counts, and after a crash between blob and row the piece comes again
and is written over itself. With the last one the SHA-256 is compared: readers see no file before that.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import Invalid, PayloadTooLarge, StateConflict
from remotegpu_server.blobs import Blobs
from remotegpu_server.db import tables
from remotegpu_server.fault_points import FaultPoints

PIECE_BYTES = 2**20
READ_BYTES = 2**20

Row = tables.Artifact | tables.TaskInput


@dataclass(frozen=True, slots=True)
class Received:
    """What there is of a file: send on from there."""

    size_bytes: int
    complete: bool


def check_piece(data: bytes, *, offset: int, size_bytes: int) -> None:
    """Raises ``PayloadTooLarge``, ``Invalid``."""
    if len(data) > PIECE_BYTES:
        raise PayloadTooLarge(f"A piece of a file has at most {PIECE_BYTES} bytes.")
    if offset + len(data) > size_bytes:
        raise Invalid("This piece ends behind the end of the file.")


async def take(
    sessions: async_sessionmaker[AsyncSession],
    blobs: Blobs,
    fault_points: FaultPoints,
    *,
    row: Row,
    blob: str,
    offset: int,
    data: bytes,
    still: ColumnElement[bool],
) -> Received:
    """Store the next piece, while ``still`` holds. Any other piece is not stored; the answer says where to go
    on. Raises ``StateConflict`` when the checksum is wrong.
    """
    if row.completed_at is not None or offset != row.received_bytes:
        return Received(row.received_bytes, row.completed_at is not None)
    end = offset + len(data)
    if data:
        await blobs.write(blob, offset=offset, data=data)
        fault_points.reach("after_blob")
        if not await _count(sessions, row, to=end, still=still):
            return await _now(sessions, row)
    if end < row.size_bytes:
        return Received(end, complete=False)
    return await _finish(sessions, blobs, row, blob)


async def _count(
    sessions: async_sessionmaker[AsyncSession], row: Row, *, to: int, still: ColumnElement[bool]
) -> bool:
    """False: an equal piece was faster, or nothing may be added any more."""
    table = type(row)
    values = {"received_bytes": to} | ({"used_at": func.now()} if table is tables.TaskInput else {})
    async with sessions() as db:
        counted = await db.scalar(
            update(table)
            .where(table.id == row.id, table.received_bytes == row.received_bytes, still)
            .values(**values)
            .returning(table.id)
            .execution_options(synchronize_session=False)
        )
        await db.commit()
    return counted is not None


async def _now(sessions: async_sessionmaker[AsyncSession], row: Row) -> Received:
    table = type(row)
    async with sessions() as db:
        found: Row | None = await db.scalar(select(table).where(table.id == row.id))
    if found is None:
        raise StateConflict("The file was begun anew.", hint="Send it from the start.")
    return Received(found.received_bytes, found.completed_at is not None)


async def _finish(sessions: async_sessionmaker[AsyncSession], blobs: Blobs, row: Row, blob: str) -> Received:
    """All bytes are there: check them, and show the file or begin anew."""
    digest = hashlib.sha256()
    async for block in content(blobs, blob, start=0, end=row.size_bytes):
        digest.update(block)
    right = digest.hexdigest() == row.sha256
    table = type(row)
    values = {"completed_at": func.now()} if right else {"received_bytes": 0}
    async with sessions() as db:
        await db.execute(
            update(table)
            .where(table.id == row.id, table.completed_at.is_(None))
            .values(**values)
            .execution_options(synchronize_session=False)
        )
        await db.commit()
    if not right:
        raise StateConflict("The checksum does not fit what arrived.", hint="Send the file from the start.")
    return Received(row.size_bytes, complete=True)


async def content(blobs: Blobs, blob: str, *, start: int, end: int) -> AsyncIterator[bytes]:
    """Its bytes from ``start`` to before ``end``, in blocks."""
    while start < end:
        block = await blobs.read(blob, offset=start, size=min(READ_BYTES, end - start))
        if not block:
            raise OSError(f"blob {blob} is shorter than its row says")
        start += len(block)
        yield block
