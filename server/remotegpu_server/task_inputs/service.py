"""Inputs of tasks: sent in pieces by content, counted by person, kept while a task needs them.

One that is being removed is marked first: from then on no task takes it, and the same content begins a new
row. It counts until its bytes are gone.
"""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import Conflict, NotFound, PayloadTooLarge, Unavailable
from remotegpu.types.tasks import TaskInput, TaskInputRoom
from remotegpu_server import authz, observability, uploads
from remotegpu_server.authz import Action, Actor
from remotegpu_server.blobs import Blobs
from remotegpu_server.db import tables
from remotegpu_server.fault_points import FaultPoints
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import TASK_INPUT_MAX_BYTES, TASK_INPUTS_MAX_BYTES

IN_USE_S = 600.0
"""So long after its last piece or task, an input makes no room for another one."""
HANDED_OUT_BYTES = 4 * 2**20
"""Most that one answer to an agent holds."""
_log = structlog.get_logger(__name__)


def blob_of(input_id: str) -> str:
    """Name of the blob with its bytes."""
    return f"inputs/{input_id}"


async def room(db: AsyncSession, *, actor: Actor) -> TaskInputRoom:
    """What the caller may send, and what is there of theirs."""
    authz.require(actor, Action.TASK_CREATE)
    return TaskInputRoom(
        max_bytes=await platform_settings.value(db, TASK_INPUT_MAX_BYTES),
        total_max_bytes=await platform_settings.value(db, TASK_INPUTS_MAX_BYTES),
        total_used_bytes=await _used(db, actor=actor),
    )


async def store(
    sessions: async_sessionmaker[AsyncSession],
    blobs: Blobs,
    fault_points: FaultPoints,
    *,
    actor: Actor,
    sha256: str,
    size_bytes: int,
    offset: int,
    data: bytes,
) -> TaskInput:
    """Store the next piece. Any other piece is not stored; the answer says where to go on."""
    authz.require(actor, Action.TASK_CREATE)
    uploads.check_piece(data, offset=offset, size_bytes=size_bytes)
    row = await _declared(sessions, blobs, actor=actor, sha256=sha256, size_bytes=size_bytes)
    received = await uploads.take(
        sessions,
        blobs,
        fault_points,
        row=row,
        blob=blob_of(row.id),
        offset=offset,
        data=data,
        still=tables.TaskInput.removing_at.is_(None),
    )
    return TaskInput(
        sha256=sha256,
        size_bytes=size_bytes,
        received_bytes=received.size_bytes,
        complete=received.complete,
    )


async def _declared(
    sessions: async_sessionmaker[AsyncSession], blobs: Blobs, *, actor: Actor, sha256: str, size_bytes: int
) -> tables.TaskInput:
    """The row of this content, made where there is none; older inputs that nothing needs give way."""
    async with sessions() as db:
        found = await _found_or_made(db, actor=actor, sha256=sha256, size_bytes=size_bytes)
        doomed = [] if found is not None else await _give_way(db, actor=actor, size_bytes=size_bytes)
        await db.commit()
    if found is not None:
        return found
    await remove(sessions, blobs, doomed)
    async with sessions() as db:
        found = await _found_or_made(db, actor=actor, sha256=sha256, size_bytes=size_bytes)
        if found is None:
            raise await _no_room(db, actor=actor, size_bytes=size_bytes)
        await db.commit()
    return found


async def _found_or_made(
    db: AsyncSession, *, actor: Actor, sha256: str, size_bytes: int
) -> tables.TaskInput | None:
    """``None``: there is no room for it. Raises ``PayloadTooLarge``."""
    row = tables.TaskInput
    if (found := await _touched(db, actor=actor, sha256=sha256, size_bytes=size_bytes)) is not None:
        return found
    await _lock_owner(db, actor=actor)
    if (found := await _touched(db, actor=actor, sha256=sha256, size_bytes=size_bytes)) is not None:
        return found
    if await db.scalar(select(row.id).where(_of(actor.user_id, sha256))) is not None:
        raise Conflict("This content was begun with another size.", hint="Send the size that it has.")
    if await _missing(db, actor=actor, size_bytes=size_bytes) > 0:
        return None
    values = {"owner_id": actor.user_id, "sha256": sha256, "size_bytes": size_bytes}
    made: tables.TaskInput | None = await db.scalar(
        insert(row).values(id=tables.new_id("inp"), **values).returning(row)
    )
    assert made is not None, "INSERT … RETURNING answers a row"
    return made


async def _touched(
    db: AsyncSession, *, actor: Actor, sha256: str, size_bytes: int
) -> tables.TaskInput | None:
    row = tables.TaskInput
    found: tables.TaskInput | None = await db.scalar(
        update(row)
        .where(_of(actor.user_id, sha256), row.size_bytes == size_bytes)
        .values(used_at=func.now())
        .returning(row)
        .execution_options(synchronize_session=False)
    )
    return found


async def _no_room(db: AsyncSession, *, actor: Actor, size_bytes: int) -> Conflict:
    most = await platform_settings.value(db, TASK_INPUTS_MAX_BYTES)
    used = await _used(db, actor=actor)
    return Conflict(
        f"Inputs of your tasks have {used} of {most} bytes; {size_bytes} more have no room.",
        hint="They go when the tasks that need them have ended. Data of many tasks belongs on a volume.",
        data={"used": used, "limit": most, "requested": size_bytes},
    )


async def _missing(db: AsyncSession, *, actor: Actor, size_bytes: int) -> int:
    """Bytes by which a new input is above the person's limit. Raises ``PayloadTooLarge``."""
    most = await platform_settings.value(db, TASK_INPUT_MAX_BYTES)
    if size_bytes > most:
        raise PayloadTooLarge(
            f"An input of a task has at most {most} bytes; this one has {size_bytes}.",
            hint="Put it on a volume and let the task read it there.",
            data={"limit": most, "requested": size_bytes},
        )
    total = await platform_settings.value(db, TASK_INPUTS_MAX_BYTES)
    return await _used(db, actor=actor) + size_bytes - total


async def _used(db: AsyncSession, *, actor: Actor) -> int:
    row = tables.TaskInput
    found = select(func.coalesce(func.sum(row.size_bytes), 0)).where(row.owner_id == actor.user_id)
    return int(await db.scalar(found) or 0)


async def _give_way(db: AsyncSession, *, actor: Actor, size_bytes: int) -> list[str]:
    """Marks idle ones, the oldest first, until there is room; none where all of them were too few."""
    row = tables.TaskInput
    idle = unneeded(timedelta(seconds=IN_USE_S), ended=timedelta(0))
    missing = await _missing(db, actor=actor, size_bytes=size_bytes)
    doomed: list[str] = []
    for input_id, freed in await db.execute(
        select(row.id, row.size_bytes)
        .where(row.owner_id == actor.user_id, row.removing_at.is_(None), idle)
        .order_by(row.used_at)
    ):
        doomed.append(input_id)
        missing -= freed
        if missing <= 0:
            return await mark(db, doomed, idle)
    return []


async def _lock_owner(db: AsyncSession, *, actor: Actor) -> None:
    """One person's new inputs come one after the other, so that their sum holds."""
    row = tables.User
    await db.execute(select(row.id).where(row.id == actor.user_id).with_for_update(key_share=True))


def unneeded(idle: timedelta, *, ended: timedelta) -> ColumnElement[bool]:
    """Not used for so long, and no task with it runs, waits, or has ended less than so long ago."""
    row, task = tables.TaskInput, tables.Task
    needs = select(task.id).where(
        task.owner_id == row.owner_id,
        task.input_sha256 == row.sha256,
        or_(task.finished_at.is_(None), task.finished_at > func.now() - ended),
    )
    return and_(row.used_at < func.now() - idle, ~needs.exists())


async def mark(db: AsyncSession, input_ids: list[str], condition: ColumnElement[bool]) -> list[str]:
    """Those that no task can take any more; looked at again under their locks, which are taken in order."""
    row = tables.TaskInput
    await db.execute(select(row.id).where(row.id.in_(input_ids)).order_by(row.id).with_for_update())
    marked = await db.scalars(
        update(row)
        .where(row.id.in_(input_ids), condition)
        .values(removing_at=func.now())
        .returning(row.id)
        .execution_options(synchronize_session=False)
    )
    return list(marked)


async def remove(sessions: async_sessionmaker[AsyncSession], blobs: Blobs, input_ids: list[str]) -> None:
    """The bytes of those that are marked first, then what tells of them. One whose bytes cannot be removed
    keeps no other.
    """
    row = tables.TaskInput
    gone: list[str] = []
    for input_id in input_ids:
        try:
            await blobs.remove(blob_of(input_id))
        except (OSError, Unavailable) as error:  # it stays marked, so a later pass tries again
            _log.error("input_not_removed", input=input_id, error=str(error))
            observability.LOOP_ITEM_FAILURES.labels("task-inputs").inc()
        else:
            gone.append(input_id)
    async with sessions() as db:
        await db.execute(delete(row).where(row.id.in_(gone), row.removing_at.is_not(None)))
        await db.commit()


async def hold(db: AsyncSession, *, owner_id: str, sha256: str) -> int:
    """A task takes this input of its owner's: it stays until the task has ended. Answers its size.

    Raises ``NotFound`` unless all of it is there.
    """
    row = tables.TaskInput
    size_bytes = await db.scalar(
        update(row)
        .where(_of(owner_id, sha256), row.completed_at.is_not(None))
        .values(used_at=func.now())
        .returning(row.size_bytes)
        .execution_options(synchronize_session=False)
    )
    if size_bytes is None:
        raise NotFound(f"There is no input {sha256[:12]}… of yours.", hint="Send it first, all of it.")
    return size_bytes


async def find(db: AsyncSession, *, attempt: tables.Attempt) -> tables.TaskInput:
    """The input that an attempt reads. Raises ``NotFound``."""
    row, task = tables.TaskInput, tables.Task
    found: tables.TaskInput | None = await db.scalar(
        select(row)
        .join(task, and_(task.owner_id == row.owner_id, task.input_sha256 == row.sha256))
        .where(task.id == attempt.task_id, row.completed_at.is_not(None), row.removing_at.is_(None))
    )
    if found is None:
        raise NotFound("The task has no input.")
    return found


def _of(owner_id: str | None, sha256: str) -> ColumnElement[bool]:
    row = tables.TaskInput
    return and_(row.owner_id == owner_id, row.sha256 == sha256, row.removing_at.is_(None))
