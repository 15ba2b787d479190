"""Files that attempts leave in ``/output``: stored in pieces, checked, listed, handed out.

A piece goes to the place where the row says that the last one ended, then one UPDATE counts it, as for
output. Readers see the file once its SHA-256 was found right. Its path is data: none of ours is made of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator

from sqlalchemy import delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import Invalid, NotFound, PayloadTooLarge, StateConflict
from remotegpu.types.agent import ArtifactReply
from remotegpu.types.tasks import Artifact
from remotegpu.types.wire import Page
from remotegpu_server.authz import Action, Actor
from remotegpu_server.blobs import Blobs
from remotegpu_server.db import tables
from remotegpu_server.fault_points import FaultPoints
from remotegpu_server.outputs import queries
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import TASK_ARTIFACTS_MAX_BYTES
from remotegpu_server.tasks.service import read

PIECE_BYTES = 2**20
READ_BYTES = 2**20
MAX_FILES = 10_000
"""Of one attempt."""
_PATH = re.compile(r"[^\x00-\x1f\x7f\\]{1,1024}")


def blob_of(row: tables.Artifact) -> str:
    """Name of the blob with its bytes."""
    return f"artifacts/{row.attempt_id}/{row.id}"


async def store(
    sessions: async_sessionmaker[AsyncSession],
    blobs: Blobs,
    fault_points: FaultPoints,
    *,
    actor: Actor,
    attempt_id: str,
    epoch: int,
    path: str,
    size_bytes: int,
    sha256: str,
    offset: int,
    data: bytes,
) -> ArtifactReply:
    """Store the next piece of a file. Any other piece is not stored; the answer says where to go on."""
    _check(path, size_bytes=size_bytes, offset=offset, data=data)
    async with sessions() as db:
        (await queries.writable(db, actor=actor, attempt_id=attempt_id, epoch=epoch)).refuse()
        row = await _declared(db, attempt_id=attempt_id, path=path, size_bytes=size_bytes, sha256=sha256)
        await db.commit()
    if row.completed_at is not None or offset != row.received_bytes:
        return ArtifactReply(received_bytes=row.received_bytes, complete=row.completed_at is not None)
    if data:
        await blobs.write(blob_of(row), offset=offset, data=data)
        fault_points.reach("after_blob")
        if not await _count(sessions, row, epoch=epoch, to=offset + len(data)):
            return await _now(sessions, row)
    if offset + len(data) < size_bytes:
        return ArtifactReply(received_bytes=offset + len(data), complete=False)
    return await _finish(sessions, blobs, row)


def _check(path: str, *, size_bytes: int, offset: int, data: bytes) -> None:
    parts = path.split("/")
    if not _PATH.fullmatch(path) or any(part in ("", ".", "..") for part in parts):
        raise Invalid("This is no path below /output.", hint="No leading /, no .., no control characters.")
    if len(data) > PIECE_BYTES:
        raise PayloadTooLarge(f"A piece of a file has at most {PIECE_BYTES} bytes.")
    if offset + len(data) > size_bytes:
        raise Invalid("This piece ends behind the end of the file.")


async def _declared(
    db: AsyncSession, *, attempt_id: str, path: str, size_bytes: int, sha256: str
) -> tables.Artifact:
    """The row of the file, made or, where another file was begun under the path, made anew."""
    row, attempt = tables.Artifact, tables.Attempt
    here = (row.attempt_id == attempt_id) & (row.path == path)
    found: tables.Artifact | None = await db.scalar(select(row).where(here))
    if found is not None and (found.size_bytes, found.sha256) == (size_bytes, sha256):
        return found
    await db.execute(select(attempt.id).where(attempt.id == attempt_id).with_for_update(key_share=True))
    if found is not None:
        await db.execute(delete(row).where(here, row.completed_at.is_(None)))
    if await db.scalar(select(row.id).where(here)) is not None:
        raise StateConflict(
            "A file of this path is stored already, with other content.", hint="Keep the first."
        )
    await _require_room(db, attempt_id=attempt_id, more=size_bytes)
    made: tables.Artifact | None = await db.scalar(
        insert(row)
        .values(
            id=tables.new_id("art"), attempt_id=attempt_id, path=path, size_bytes=size_bytes, sha256=sha256
        )
        .returning(row)
    )
    assert made is not None, "INSERT … RETURNING answers a row"
    return made


async def _require_room(db: AsyncSession, *, attempt_id: str, more: int) -> None:
    row = tables.Artifact
    limit = await platform_settings.value(db, TASK_ARTIFACTS_MAX_BYTES)
    counted = await db.execute(
        select(func.count(), func.coalesce(func.sum(row.size_bytes), 0)).where(row.attempt_id == attempt_id)
    )
    files, used = counted.one()
    if used + more > limit or files >= MAX_FILES:
        raise PayloadTooLarge(
            f"An attempt may leave {limit} bytes in {MAX_FILES} files; there are {used} in {files}.",
            hint="Leave less in /output, or ask an admin for a higher tasks.artifacts_max_bytes.",
        )


async def _count(
    sessions: async_sessionmaker[AsyncSession], row: tables.Artifact, *, epoch: int, to: int
) -> bool:
    """False: an equal piece was faster, or nothing may be added any more."""
    table, attempt = tables.Artifact, tables.Attempt
    allowed = select(attempt.id).where(attempt.id == row.attempt_id, queries.same_session(epoch))
    async with sessions() as db:
        counted = await db.scalar(
            update(table)
            .where(table.id == row.id, table.received_bytes == row.received_bytes, allowed.exists())
            .values(received_bytes=to)
            .returning(table.id)
            .execution_options(synchronize_session=False)
        )
        await db.commit()
    return counted is not None


async def _now(sessions: async_sessionmaker[AsyncSession], row: tables.Artifact) -> ArtifactReply:
    table = tables.Artifact
    async with sessions() as db:
        found = await db.scalar(select(table).where(table.id == row.id))
    if found is None:
        raise StateConflict("The file was begun anew.", hint="Send it from the start.")
    return ArtifactReply(received_bytes=found.received_bytes, complete=found.completed_at is not None)


async def _finish(
    sessions: async_sessionmaker[AsyncSession], blobs: Blobs, row: tables.Artifact
) -> ArtifactReply:
    """All bytes are there: check them, and show the file or begin anew."""
    digest = hashlib.sha256()
    async for block in content(blobs, row, start=0, end=row.size_bytes):
        digest.update(block)
    right = digest.hexdigest() == row.sha256
    table = tables.Artifact
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
    return ArtifactReply(received_bytes=row.size_bytes, complete=True)


async def content(blobs: Blobs, row: tables.Artifact, *, start: int, end: int) -> AsyncIterator[bytes]:
    """Its bytes from ``start`` to before ``end``, in blocks."""
    while start < end:
        block = await blobs.read(blob_of(row), offset=start, size=min(READ_BYTES, end - start))
        if not block:
            raise OSError(f"blob {blob_of(row)} is shorter than its row says")
        start += len(block)
        yield block


async def list_artifacts(
    db: AsyncSession,
    *,
    actor: Actor,
    task_id: str,
    attempt: int | None,
    path: str | None,
    limit: int,
    cursor: str | None,
) -> Page[Artifact]:
    """Those of the newest attempt first, then by rank and path."""
    await read.visible_row(db, actor=actor, action=Action.TASK_LOGS, task_id=task_id)
    row, tried = tables.Artifact, tables.Attempt
    place = (-tried.number, tried.rank, row.path, row.id)
    found = (
        select(row, tried)
        .join(tried, tried.id == row.attempt_id)
        .where(tried.task_id == task_id, row.completed_at.is_not(None))
        .order_by(tried.number.desc(), tried.rank, row.path, row.id)
    )
    if attempt is not None:
        found = found.where(tried.number == attempt)
    if path is not None:
        found = found.where(row.path == path)
    if cursor is not None:
        last = select(*place).select_from(row).join(tried, tried.id == row.attempt_id)
        found = found.where(tuple_(*place) > last.where(row.id == cursor).scalar_subquery())
    rows = (await db.execute(found.limit(limit + 1))).all()
    items = [to_wire(one, of) for one, of in rows[:limit]]
    return Page[Artifact](items=items, next_cursor=items[-1].id if len(rows) > limit else None)


def to_wire(row: tables.Artifact, attempt: tables.Attempt) -> Artifact:
    """What a reader of the task sees."""
    return Artifact(
        id=row.id,
        task_id=attempt.task_id,
        attempt=attempt.number,
        rank=attempt.rank,
        path=row.path,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )


async def find(db: AsyncSession, *, actor: Actor, task_id: str, artifact_id: str) -> tables.Artifact:
    """One that is complete. Raises ``NotFound``."""
    await read.visible_row(db, actor=actor, action=Action.TASK_LOGS, task_id=task_id)
    row, tried = tables.Artifact, tables.Attempt
    found: tables.Artifact | None = await db.scalar(
        select(row)
        .join(tried, tried.id == row.attempt_id)
        .where(row.id == artifact_id, tried.task_id == task_id, row.completed_at.is_not(None))
    )
    if found is None:
        raise NotFound("The task has no such artifact.")
    return found
