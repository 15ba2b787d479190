"""Ending tasks, and running ended ones again."""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound, StateConflict
from remotegpu.types.environments import Reason
from remotegpu.types.tasks import Task
from remotegpu_server import holds
from remotegpu_server.attempts import lifecycle as attempts
from remotegpu_server.authz import SYSTEM, Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.images import service as images
from remotegpu_server.notifications import service as notifications
from remotegpu_server.task_inputs import service as task_inputs
from remotegpu_server.tasks import convert, lifecycle, queries
from remotegpu_server.tasks.service import read
from remotegpu_server.tokens import service as tokens
from remotegpu_server.workspaces import service as workspaces

PLACED_MEANWHILE = 3
"""So often the queue may place a task between two looks at it."""


async def stop_task(db: AsyncSession, *, actor: Actor, task_id: str) -> Task:
    """Stop a task; one that has ended, or is being stopped, is answered as it is."""
    task = await _locked(db, actor=actor, task_id=task_id)
    await end(db, task=task, reason=Reason.CANCELLED, message=f"Stopped by {actor.name}.", actor=actor)
    (bundle,) = await queries.bundles(db, ids=[task.id])
    return convert.to_wire(bundle)


async def _locked(db: AsyncSession, *, actor: Actor, task_id: str) -> tables.Task:
    await read.visible_row(db, actor=actor, action=Action.TASK_STOP, task_id=task_id)
    task = await locked_with_hosts(db, task_id=task_id)
    if task is None:
        raise NotFound("There is no such task.")
    return task


async def locked_with_hosts(db: AsyncSession, *, task_id: str) -> tables.Task | None:
    """The task, locked after the hosts on which it is now.

    Where the queue placed it in between, the locks are given back and taken anew, in the right order.
    """
    for _ in range(PLACED_MEANWHILE):
        async with db.begin_nested() as taken:
            hosts = await _hosts_of(db, task_id=task_id)
            for host_id in hosts:
                await holds.lock_host(db, host_id=host_id)
            task = await queries.lock(db, task_id=task_id)
            if set(await _hosts_of(db, task_id=task_id)) <= set(hosts):
                return task
            await taken.rollback()
    raise StateConflict("The task is being moved at this moment.", hint="Try again.")


async def _hosts_of(db: AsyncSession, *, task_id: str) -> list[str]:
    row = tables.Attempt
    hosts = select(row.host_id).where(row.task_id == task_id, row.finished_at.is_(None)).distinct()
    return sorted(await db.scalars(hosts))


async def end_by_itself(db: AsyncSession, *, task_id: str, reason: Reason, message: str) -> bool:
    """End what has not ended for a reason of the platform's, and tell its owner. False: it has ended."""
    task = await locked_with_hosts(db, task_id=task_id)
    if task is None or task.status in lifecycle.ENDED or task.stop_requested_at is not None:
        return False
    await end(db, task=task, reason=reason, message=message, actor=SYSTEM)
    await notifications.tell(
        db,
        user_ids=[task.owner_id],
        kind="task.stopped",
        level="warning",
        message=f"{task.name}: {message}",
        subject_type="task",
        subject_id=task.id,
        data={"reason": str(reason)},
    )
    return True


async def give_way(db: AsyncSession, *, task_id: str, host_id: str, reason: Reason, message: str) -> bool:
    """End what of a task is on a host, so that it waits again with its age and without losing a retry.

    ``reason`` is one of ``attempts.lifecycle.GIVES_WAY``. False: nothing of it is there that is not being
    ended already.
    """
    task = await locked_with_hosts(db, task_id=task_id)
    if task is None or task.status not in ("assigned", "running") or task.stop_requested_at is not None:
        return False
    live = await queries.live_attempts(db, task_id=task_id)
    if not any(one.host_id == host_id and one.stop_reason is None for one in live):
        return False
    begun = False
    for attempt in live:
        begun |= await attempts.stop(db, attempt=attempt, reason=reason, message=message)
    if begun:
        await lifecycle.move(
            db,
            task=task,
            to=lifecycle.Status(task.status),
            reason=reason,
            message=f"{message} Ending what runs.",
            actor=SYSTEM,
        )
    else:
        await lifecycle.attempt_ended(
            db, task=task, outcome="preempted", reason=reason, message=message, actor=SYSTEM
        )
    return True


async def end(db: AsyncSession, *, task: tables.Task, reason: Reason, message: str, actor: Actor) -> None:
    """End a locked task whose hosts are locked: at once while nothing of it runs, otherwise by its agents."""
    if task.status in lifecycle.ENDED or task.stop_requested_at is not None:
        return
    row = tables.Task
    task = await db.scalar(  # type: ignore[assignment]  # the row is locked
        update(row)
        .where(row.id == task.id)
        .values(stop_requested_at=func.now())
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    begun = False
    for attempt in await queries.live_attempts(db, task_id=task.id):
        begun |= await attempts.stop(db, attempt=attempt, reason=reason, message=message)
    if not begun:
        await lifecycle.move(
            db,
            task=task,
            to=lifecycle.Status.CANCELLED,
            reason=reason,
            message=message,
            actor=actor,
        )
        return
    await lifecycle.move(
        db,
        task=task,
        to=lifecycle.Status(task.status),
        reason=reason,
        message=f"{message} Ending what runs.",
        actor=actor,
    )


async def retry_task(db: AsyncSession, *, actor: Actor, task_id: str) -> Task:
    """Run a task that ended badly once more, with its retries given back."""
    seen = await read.visible_row(db, actor=actor, action=Action.TASK_STOP, task_id=task_id)
    await tokens.require_active(db, *sorted({seen.owner_id, *filter(None, (actor.user_id,))}))
    workspace = await db.get(tables.Workspace, seen.workspace_id, with_for_update={"read": True})
    assert workspace is not None, "tasks keep their workspace"
    workspaces.require_active(workspace)
    await images.allowed(db, image=seen.image_id, workspace=workspace)
    if seen.input_sha256 is not None:
        await task_inputs.hold(db, owner_id=seen.owner_id, sha256=seen.input_sha256)
    task = await queries.lock(db, task_id=task_id)
    assert task is not None, "it was just there"
    if task.status not in ("failed", "cancelled", "timed_out"):
        raise StateConflict(
            f"Task {task.name} is {task.status}.",
            hint="Only what failed, was cancelled or timed out runs again.",
        )
    await lifecycle.move(
        db,
        task=task,
        to=lifecycle.Status.PENDING,
        reason=Reason.REQUESTED,
        message="Requested again.",
        actor=actor,
        generation=task.generation + 1 if await attempts.was_tried(db, task=task) else task.generation,
        retries=0,
        stop_requested_at=None,
        start_at=None,
        queued_at=func.now(),
        started_at=None,
        finished_at=None,
        progress=None,
        progress_message="",
    )
    notify(db, "queue")
    (again,) = await queries.bundles(db, ids=[task.id])
    return convert.to_wire(again)
