"""The one place that moves an attempt's status, and that gives back what it holds.

The caller has locked host, task and attempt, in this order.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import StateConflict
from remotegpu.types.environments import Reason
from remotegpu.types.tasks import AttemptStatus
from remotegpu_server import holds
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.db.transitions import ATTEMPT_STATUS
from remotegpu_server.tasks.lifecycle import OUTPUT
from remotegpu_server.tokens import service as tokens

Status = AttemptStatus
LIVE = frozenset({Status.ASSIGNED, Status.CLAIMED, Status.ACCEPTED, Status.RUNNING})


async def move(db: AsyncSession, *, attempt: tables.Attempt, to: Status, **values: Any) -> tables.Attempt:
    """Write a status; ``values`` are further columns of the same UPDATE. An end ends its secrets and token.

    Raises :class:`StateConflict` when the move is not in the table or the row has moved meanwhile.
    """
    before = attempt.status
    if to not in ATTEMPT_STATUS[before]:
        raise StateConflict(f"Attempt {attempt.id} is {before}; it cannot become {to}.")
    if to not in LIVE:
        values |= {"finished_at": func.now(), "secret_env": None, "lease_expires_at": None}
        await tokens.revoke_of_attempt(db, attempt.id)
    row = tables.Attempt
    changed: tables.Attempt | None = await db.scalar(
        update(row)
        .where(row.id == attempt.id, row.status == before)
        .values(status=str(to), **values)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    if changed is None:
        raise StateConflict(f"Attempt {attempt.id} changed meanwhile.", hint="Look again, then retry.")
    return changed


async def stop(db: AsyncSession, *, attempt: tables.Attempt, reason: Reason, message: str) -> bool:
    """End one attempt. False: it had not begun, so it has ended now; what its host may have claimed is given
    back when the agent says that there is nothing, or when it has surely ended. True: its agent is told.
    """
    if attempt.status in (Status.ACCEPTED, Status.RUNNING):
        row = tables.Attempt
        await db.execute(
            update(row)
            .where(row.id == attempt.id, row.stop_reason.is_(None))
            .values(stop_reason=str(reason), message=message)
            .execution_options(synchronize_session=False)
        )
        await holds.bump_revision(db, host_id=attempt.host_id)
        return True
    unclaimed = attempt.status == Status.ASSIGNED
    outcome = Status.PREEMPTED if reason in GIVES_WAY else Status.CANCELLED
    await move(db, attempt=attempt, to=outcome, reason=str(reason), message=message)
    if unclaimed:  # its host has never heard of it
        await release(db, attempt=attempt, proof="absent")
    return False


GIVES_WAY = frozenset({Reason.PREEMPTED, Reason.HOST_DRAINED, Reason.DEDICATION_ENDED, Reason.HOST_SILENT})
"""Reasons for which a task ends here to go on elsewhere."""


async def release(db: AsyncSession, *, attempt: tables.Attempt, proof: str) -> bool:
    """Give back everything that an attempt holds, exactly once. False: it was released before."""
    held = tables.Placement
    placement = await db.scalar(
        select(held)
        .where(held.attempt_id == attempt.id, held.released_at.is_(None))
        .execution_options(populate_existing=True)
    )
    row = tables.Attempt
    await db.execute(
        update(row)
        .where(row.id == attempt.id)
        .values(lost_at=None)
        .execution_options(synchronize_session=False)
    )
    notify(db, OUTPUT.format(task_id=attempt.task_id))
    return placement is not None and await holds.release(db, placement=placement, proof=proof)


async def was_tried(db: AsyncSession, *, task: tables.Task) -> bool:
    """Whether the task's present number has been given to an attempt."""
    row = tables.Attempt
    found = await db.scalar(
        select(row.id).where(row.task_id == task.id, row.number == task.generation).limit(1)
    )
    return found is not None
