"""Background passes: silent agents, timeouts that nobody enforced, dependencies that cannot hold."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from remotegpu.types.environments import Reason
from remotegpu.types.tasks import AttemptStatus, TaskStatus
from remotegpu_server import holds
from remotegpu_server.attempts import lifecycle, service, tries
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.tasks import lifecycle as tasks
from remotegpu_server.tasks import queries as task_queries
from remotegpu_server.tasks.service import stop

BATCH = 500
CLAIM_WITHIN = timedelta(seconds=120)
"""An agent that is there and has a free worker claims at once. One that has none, or that is older than
tasks, keeps nothing from other hosts for longer."""
TIMEOUT_MARGIN = timedelta(seconds=60)
"""Agents enforce timeouts; this is for one that does not."""

READY_WITHIN = timedelta(minutes=30)
"""A large image on a slow line takes less; the GPUs of the hosts that are ready are idle meanwhile."""


async def give_up_lost(work: Work) -> None:
    """Nobody is given up before all agents had the time to be heard: after a change of the leader, and
    after a jump of the clock by which their leases end.
    """
    row = tables.Attempt
    async with work.session() as db:
        found = await db.scalars(
            select(row.id).where(row.lost_at < func.now()).order_by(row.lost_at).limit(BATCH)
        )
        overdue = found.all()
        # Looked at last, so that a jump before the list was made is seen.
        heard_for_s = min(work.led_for_s(), await work.clock.steady_for_s(db))
    if heard_for_s < work.settings.attempt_lost_s:
        return
    for attempt_id in overdue:
        with by_itself("attempts-lost", attempt_id):
            async with work.session() as db:
                await service.give_up(db, attempt_id=attempt_id, actor=SYSTEM)


async def take_back_unclaimed(work: Work) -> None:
    """What a host has not asked for, silent or not, waits in the queue again; it never ran anywhere."""
    row, host = tables.Attempt, tables.Host
    async with work.session() as db:
        found = await db.execute(
            select(row.id, row.task_id, row.host_id)
            .join(host, host.id == row.host_id)
            .where(
                row.status == "assigned",
                host.connection.in_(["unreachable", "lost"]) | (row.created_at < func.now() - CLAIM_WITHIN),
            )
            .limit(BATCH)
        )
        unclaimed = found.all()
    for attempt_id, task_id, host_id in unclaimed:
        with by_itself("attempts-unclaimed", attempt_id):
            async with work.session() as db:
                await holds.lock_host(db, host_id=host_id)
                task = await task_queries.lock(db, task_id=task_id)
                assert task is not None, "attempts keep their task"
                for one in await task_queries.live_attempts(db, task_id=task_id):
                    if one.id == attempt_id and one.status == AttemptStatus.ASSIGNED:
                        await service.take_back(db, task=task, attempt=one, actor=SYSTEM)


async def enforce_timeouts(work: Work) -> None:
    """Tell agents to end what should have ended, in case they do not know."""
    row, attempt = tables.Task, tables.Attempt
    async with work.session() as db:
        found = await db.execute(
            select(row.id, attempt.id, attempt.host_id)
            .join(attempt, attempt.task_id == row.id)
            .where(
                row.status == "running",
                attempt.finished_at.is_(None),
                attempt.stop_reason.is_(None),
                row.deadline_at < func.now() - TIMEOUT_MARGIN,
            )
            .limit(BATCH)
        )
        overdue = found.all()
    for task_id, attempt_id, host_id in overdue:
        with by_itself("attempts-timeouts", task_id):
            async with work.session() as db:
                await holds.lock_host(db, host_id=host_id)
                await task_queries.lock(db, task_id=task_id)
                for one in await task_queries.live_attempts(db, task_id=task_id):
                    if one.id == attempt_id:
                        await lifecycle.stop(db, attempt=one, reason=Reason.TIMEOUT, message="Timed out.")


async def end_gangs(work: Work) -> None:
    """Where one host of several failed, was lost or emptied, the others end too."""
    async with work.session() as db:
        found = await tries.to_end(db, limit=BATCH)
    for task_id in found:
        with by_itself("attempts-gangs", task_id):
            async with work.session() as db:
                await _end_gang(db, task_id=task_id)


async def _end_gang(db: AsyncSession, *, task_id: str) -> None:
    """Looks again under the locks of all its hosts."""
    task = await stop.locked_with_hosts(db, task_id=task_id)
    assert task is not None, "tasks are not deleted"
    seen = await tries.of(db, task=task)
    failure = seen.failure()
    if failure is None or not seen.live:
        return
    failed, host = failure
    words = f"Rank {failed.rank} on {host} ended: {failed.message}"
    for one in await task_queries.live_attempts(db, task_id=task_id):
        if one.stop_reason is None:
            await lifecycle.stop(db, attempt=one, reason=Reason.GANG_FAILED, message=words)
    if (await tries.of(db, task=task)).live:
        message = f"{words} Ending the others."
        await tasks.move(
            db,
            task=task,
            to=TaskStatus(task.status),
            reason=Reason.GANG_FAILED,
            message=message,
            actor=SYSTEM,
        )
    else:
        await service.settle(db, task=task, attempt=failed, actor=SYSTEM)


async def end_held_up(work: Work) -> None:
    """Where one host of several is not ready for long, the others give back what they hold meanwhile."""
    async with work.session() as db:
        found = await tries.held_up(db, since=READY_WITHIN, limit=BATCH)
    for task_id in found:
        with by_itself("attempts-held-up", task_id):
            async with work.session() as db:
                await _end_held_up(db, task_id=task_id)


async def _end_held_up(db: AsyncSession, *, task_id: str) -> None:
    """Looks again under the locks of all its hosts. Who is not ready gives way, and that ends the others."""
    task = await stop.locked_with_hosts(db, task_id=task_id)
    assert task is not None, "tasks are not deleted"
    seen = await tries.of(db, task=task)
    unready = [
        (one, host)
        for one, host in zip(seen.attempts, seen.hosts, strict=True)
        if one.finished_at is None and one.ready_at is None and one.stop_reason is None
    ]
    if task.status != TaskStatus.ASSIGNED or not unready or len(unready) == len(seen.live):
        return
    minutes = READY_WITHIN // timedelta(minutes=1)
    for one, host in unready:
        words = f"Host {host} was not ready within {minutes} minutes of the others."
        await lifecycle.stop(db, attempt=one, reason=Reason.HOST_SILENT, message=words)
    names = ", ".join(f"rank {one.rank} on {host}" for one, host in unready)
    message = f"Not ready within {minutes} minutes of the others: {names}. It will wait in the queue again."
    await tasks.move(
        db,
        task=task,
        to=TaskStatus(task.status),
        reason=Reason.HOST_SILENT,
        message=message,
        actor=SYSTEM,
    )
    notify(db, tries.ENDS)


async def end_with_reservation(work: Work) -> None:
    """What was to run in a reservation ends with it, also what has never started."""
    row = tables.Task
    async with work.session() as db:
        found = await db.scalars(
            select(row.id)
            .where(
                row.status.in_(["pending", "assigned", "running"]),
                row.stop_requested_at.is_(None),
                row.stop_at <= func.now(),
            )
            .order_by(row.id)
            .limit(BATCH)
        )
        over = found.all()
    for task_id in over:
        with by_itself("tasks-stop-at", task_id):
            async with work.session() as db:
                message = "Stopped, because the reservation that it was for has ended."
                await stop.end_by_itself(db, task_id=task_id, reason=Reason.STOP_AT, message=message)


async def cancel_hopeless(work: Work) -> None:
    """Cancel what waits for the success of something that has ended otherwise."""
    async with work.session() as db:
        hopeless = (await db.execute(_hopeless().limit(BATCH))).all()
    for task_id, _, _ in hopeless:
        with by_itself("task-dependencies", task_id):
            async with work.session() as db:
                await _cancel_hopeless(db, task_id=task_id)


async def _cancel_hopeless(db: AsyncSession, *, task_id: str) -> None:
    """Looks again under the lock: what it depends on may have been told to run once more."""
    task = await task_queries.lock(db, task_id=task_id)
    found = (await db.execute(_hopeless().where(tables.Task.id == task_id))).one_or_none()
    if task is None or found is None:
        return
    _, name, status = found
    await tasks.move(
        db,
        task=task,
        to=TaskStatus.CANCELLED,
        reason=Reason.DEPENDENCY_FAILED,
        message=f"Cancelled, because task {name}, on whose success it depends, has {_ENDED[status]}.",
        actor=SYSTEM,
    )


def _hopeless() -> Select[str, str, str]:
    """Id of each, with name and status of one that it depends on."""
    row, tie = tables.Task, tables.TaskDependency
    before = aliased(row)
    return (
        select(row.id, func.min(before.name), func.min(before.status))
        .join(tie, tie.task_id == row.id)
        .join(before, before.id == tie.after_id)
        .where(
            row.status == "pending",
            tie.condition == "after_ok",
            before.finished_at.is_not(None),
            before.status != "succeeded",
        )
        .group_by(row.id)
    )


_ENDED = {"failed": "failed", "cancelled": "been cancelled", "timed_out": "timed out"}


LOST = Loop(name="attempts-lost", every_s=lambda settings: settings.attempt_renew_s / 4, run=give_up_lost)
UNCLAIMED = Loop(name="attempts-unclaimed", every_s=5.0, run=take_back_unclaimed)
TIMEOUTS = Loop(name="attempts-timeouts", every_s=30.0, run=enforce_timeouts)
HELD_UP = Loop(name="attempts-held-up", every_s=30.0, run=end_held_up)
GANGS = Loop(name="attempts-gangs", every_s=5.0, run=end_gangs, wake=tries.ENDS)
STOP_TIMES = Loop(name="tasks-stop-at", every_s=5.0, run=end_with_reservation)
DEPENDENCIES = Loop(name="task-dependencies", every_s=5.0, run=cancel_hopeless, wake="queue")
