"""Files that attempts leave in ``/output``: stored in pieces, checked, listed, handed out.

Readers see a file once its SHA-256 was found right. Its path is data: none of ours is made of it.
"""

from __future__ import annotations

import re

from sqlalchemy import delete, func, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import Invalid, NotFound, PayloadTooLarge, StateConflict
from remotegpu.types.agent import ArtifactReply
from remotegpu.types.tasks import Artifact
from remotegpu.types.wire import Page
from remotegpu_server import uploads
from remotegpu_server.authz import Action, Actor
from remotegpu_server.blobs import Blobs
from remotegpu_server.db import tables
from remotegpu_server.fault_points import FaultPoints
from remotegpu_server.outputs import queries
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import TASK_ARTIFACTS_MAX_BYTES
from remotegpu_server.tasks.service import read

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
    _check_path(path)
    uploads.check_piece(data, offset=offset, size_bytes=size_bytes)
    async with sessions() as db:
        (await queries.writable(db, actor=actor, attempt_id=attempt_id, epoch=epoch)).refuse()
        row = await _declared(db, attempt_id=attempt_id, path=path, size_bytes=size_bytes, sha256=sha256)
        await db.commit()
    attempt = tables.Attempt
    still = select(attempt.id).where(attempt.id == attempt_id, queries.same_session(epoch)).exists()
    received = await uploads.take(
        sessions, blobs, fault_points, row=row, blob=blob_of(row), offset=offset, data=data, still=still
    )
    return ArtifactReply(received_bytes=received.size_bytes, complete=received.complete)


def _check_path(path: str) -> None:
    parts = path.split("/")
    if not _PATH.fullmatch(path) or any(part in ("", ".", "..") for part in parts):
        raise Invalid("This is no path below /output.", hint="No leading /, no .., no control characters.")


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


async def list_artifacts(
    db: AsyncSession,
    *,
    actor: Actor,
    task_id: str,
    attempt: int | None,
    rank: int | None,
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
    if rank is not None:
        found = found.where(tried.rank == rank)
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
