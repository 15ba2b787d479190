"""The one place that moves a task's status, and what an attempt's end makes of its task.

Every move is one UPDATE guarded by id, generation and the status it starts from, with its event in the same
transaction. The caller has locked the row (``queries.lock``).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, cast, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import StateConflict
from remotegpu.types.environments import Reason
from remotegpu.types.tasks import TaskStatus
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.db.transitions import TASK_STATUS
from remotegpu_server.events import service as events

Status = TaskStatus
ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT})
LONGEST_RETRY_DELAY_S = 3600.0
OUTPUT = "task-output:{task_id}"
"""Hint: an attempt of the task has written something, or is gone."""


async def move(
    db: AsyncSession,
    *,
    task: tables.Task,
    to: Status,
    reason: Reason,
    message: str,
    actor: Actor,
    **values: Any,
) -> None:
    """Write a status with its reason and event; ``values`` are further columns of the same UPDATE.

    Raises :class:`StateConflict` when the move is not in the table or the row has moved meanwhile.
    """
    before = task.status
    if to != before and to not in TASK_STATUS[before]:
        raise StateConflict(f"Task {task.name} is {before}; it cannot become {to}.")
    if to in ENDED and before not in ENDED:
        values |= {"finished_at": func.now(), "deadline_at": None, "preempt_at": None, "outlook": None}
    row = tables.Task
    changed = await db.scalar(
        update(row)
        .where(row.id == task.id, row.generation == task.generation, row.status == before)
        .values(status=str(to), reason=str(reason), message=message, **values)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    if changed is None:
        raise StateConflict(f"Task {task.name} changed meanwhile.", hint="Look again, then retry.")
    if actor.kind == "system" and to != before:
        await audit.record(
            db,
            actor=actor,
            action=f"tasks.{to}",
            outcome="done",
            resource_type="tasks",
            resource_id=task.id,
            detail={"old": before, "reason": str(reason)},
        )
    await events.record(
        db,
        kind="task.status",
        subject_type="task",
        subject_id=task.id,
        actor=actor,
        reason=str(reason),
        message=message,
        data={"from": before, "to": str(to), "attempt": task.generation, "exit_code": task.exit_code},
        customer_id=task.customer_id,
        user_id=task.owner_id,
        workspace_id=task.workspace_id,
    )
    if to in ENDED:
        notify(db, "queue")  # others may have waited for it


async def tell_all(
    db: AsyncSession, *, moved: CTE, before: Status, to: Status, reason: Reason, message: str, actor: Actor
) -> None:
    """The events of many moves in one statement. ``moved`` is the UPDATE that makes them, with the columns
    id, customer_id, owner_id, workspace_id and generation.
    """
    event = tables.Event
    data = func.jsonb_build_object(
        "from", str(before), "to", str(to), "attempt", moved.c.generation, "exit_code", None
    )
    said = {
        event.kind: literal("task.status"),
        event.subject_type: literal("task"),
        event.subject_id: moved.c.id,
        event.actor: literal(actor.name),
        event.customer_id: moved.c.customer_id,
        event.user_id: moved.c.owner_id,
        event.workspace_id: moved.c.workspace_id,
        event.reason: literal(str(reason)),
        event.message: literal(message),
        event.data: cast(data, JSONB),
    }
    made = await db.scalars(
        insert(event)
        .from_select([column.key for column in said], select(*said.values()))
        .returning(event.subject_id)
    )
    notify(db, events.STREAM_KEY, *(f"task:{one}" for one in made))


async def attempt_ended(
    db: AsyncSession, *, task: tables.Task, outcome: str, reason: Reason, message: str, actor: Actor
) -> None:
    """What the end of its present attempt makes of the task: its end, or another try."""
    if outcome == "preempted" and task.stop_requested_at is None:
        await _again(db, task=task, reason=reason, message=message, delay_s=0.0, actor=actor)
        return
    retry = outcome in task.retry_on and task.retries < task.max_retries and task.stop_requested_at is None
    if retry:
        delay_s = min(task.retry_delay_s * 2**task.retries, LONGEST_RETRY_DELAY_S)
        left = task.max_retries - task.retries - 1
        await _again(
            db,
            task=task,
            reason=Reason.RETRY_DELAY,
            message=f"{message} Another attempt follows in {delay_s:g} s; {left} more after that.",
            delay_s=delay_s,
            actor=actor,
            retries=task.retries + 1,
        )
        return
    to = {
        "succeeded": Status.SUCCEEDED,
        "timed_out": Status.TIMED_OUT,
        "cancelled": Status.CANCELLED,
    }.get(outcome, Status.FAILED)
    if outcome in ("lost", "preempted") and task.stop_requested_at is not None:
        to, reason = Status.CANCELLED, Reason.CANCELLED
    await move(db, task=task, to=to, reason=reason, message=message, actor=actor)


async def _again(
    db: AsyncSession,
    *,
    task: tables.Task,
    reason: Reason,
    message: str,
    delay_s: float,
    actor: Actor,
    **values: Any,
) -> None:
    """Back into the queue with its age, after a while."""
    start_at = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, delay_s) if delay_s else None
    await move(
        db,
        task=task,
        to=Status.PENDING,
        reason=reason,
        message=message,
        actor=actor,
        generation=task.generation + 1,
        start_at=start_at,
        deadline_at=None,
        preempt_at=None,
        outlook=None,
        progress=None,
        progress_message="",
        **values,
    )
    notify(db, "queue")
