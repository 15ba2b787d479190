"""Arrays of tasks, as a whole."""

from __future__ import annotations

from sqlalchemy import Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound
from remotegpu.types.environments import Reason
from remotegpu.types.tasks import TaskArrayState
from remotegpu_server import holds
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.tasks import lifecycle
from remotegpu_server.tasks.service import read, stop


async def get_array(db: AsyncSession, *, actor: Actor, array_id: str) -> TaskArrayState:
    """How many of its tasks stand where."""
    return await _state(db, actor=actor, action=Action.TASK_READ, array_id=array_id)


async def _state(db: AsyncSession, *, actor: Actor, action: Action, array_id: str) -> TaskArrayState:
    row, task, user = tables.TaskArray, tables.Task, tables.User
    first = (
        await db.execute(
            select(row, task, user.username)
            .join(task, (task.array_id == row.id) & (task.array_index == 0))
            .join(user, user.id == task.owner_id)
            .where(row.id == array_id)
        )
    ).one_or_none()
    if first is None:
        raise NotFound("There is no such array.")
    array, of_all, username = first
    read.allow(actor, action, of_all)
    counted = (
        select(task.status, func.count().label("tasks"))
        .where(task.array_id == array_id)
        .group_by(task.status)
    )
    counts = {one.status: one.tasks for one in await db.execute(counted.order_by(task.status))}
    return TaskArrayState(
        id=array.id,
        name=of_all.name,
        owner=username,
        owner_id=of_all.owner_id,
        workspace_id=of_all.workspace_id,
        size=array.size,
        max_parallel=array.max_parallel,
        counts=counts,
        created_at=array.created_at,
    )


async def stop_array(db: AsyncSession, *, actor: Actor, array_id: str) -> TaskArrayState:
    """What waits is cancelled at once, whatever their number; what runs is ended task by task."""
    await _state(db, actor=actor, action=Action.TASK_STOP, array_id=array_id)
    for host_id in await db.scalars(_hosts(array_id)):  # before any task, in id order
        await holds.lock_host(db, host_id=host_id)
    message = f"Stopped by {actor.name}, with its array."
    await _cancel_waiting(db, array_id=array_id, message=message, actor=actor)
    task = tables.Task
    live = select(task.id).where(
        task.array_id == array_id, task.finished_at.is_(None), task.stop_requested_at.is_(None)
    )
    for task_id in (await db.scalars(live.order_by(task.id))).all():
        one = await stop.locked_with_hosts(db, task_id=task_id)
        assert one is not None, "it was just there"
        await stop.end(db, task=one, reason=Reason.CANCELLED, message=message, actor=actor)
    return await _state(db, actor=actor, action=Action.TASK_STOP, array_id=array_id)


def _hosts(array_id: str) -> Select[str]:
    attempt, task = tables.Attempt, tables.Task
    return (
        select(attempt.host_id)
        .join(task, task.id == attempt.task_id)
        .where(task.array_id == array_id, attempt.finished_at.is_(None))
        .distinct()
        .order_by(attempt.host_id)
    )


async def _cancel_waiting(db: AsyncSession, *, array_id: str, message: str, actor: Actor) -> None:
    """One statement for the rows, and one for their events: as ``tasks.lifecycle`` does it for one."""
    task = tables.Task
    waiting = (
        select(task.id)
        .where(task.array_id == array_id, task.status == "pending")
        .order_by(task.id)
        .with_for_update(key_share=True)
    )
    cancelled = (
        update(task)
        .where(task.id.in_(waiting), task.status == "pending")
        .values(
            status="cancelled",
            reason=str(Reason.CANCELLED),
            message=message,
            stop_requested_at=func.now(),
            finished_at=func.now(),
            deadline_at=None,
            preempt_at=None,
            outlook=None,
        )
        .returning(task.id, task.customer_id, task.owner_id, task.workspace_id, task.generation)
        .cte("cancelled")
    )
    await lifecycle.tell_all(
        db,
        moved=cancelled,
        before=lifecycle.Status.PENDING,
        to=lifecycle.Status.CANCELLED,
        reason=Reason.CANCELLED,
        message=message,
        actor=actor,
    )
    notify(db, "queue")
