"""Stopping, with notice, what said that it may be stopped, for a request with a better priority.

Only environments and tasks that are ``preemptible`` and have run for their ``min_run_s``. An announcement is
taken back when nobody needs it any more. What was stopped goes back into the queue with its age; it has not
failed.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.environments import EnvironmentStatus, Reason
from remotegpu_server import placement
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments import lifecycle, queries
from remotegpu_server.environments.service import stop
from remotegpu_server.events import service as events
from remotegpu_server.hub_starts import service as hub_starts
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.notifications import service as notifications
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import QUEUE_PREEMPTION_NOTICE_S
from remotegpu_server.queue import snapshot as snapshots
from remotegpu_server.queue.simulation import Amount, Kind, Machine, Wanted
from remotegpu_server.tasks.service import stop as tasks


@dataclass(frozen=True, slots=True)
class Victim:
    """What may be stopped."""

    id: str
    kind: str
    """``environment`` or ``task``."""
    host: int
    """Index of its host in the snapshot."""
    priority: int
    amount: Amount
    announced: bool
    due: bool


def fewest(
    wanted: Wanted, priority: int, machines: Sequence[Machine], victims: Sequence[Victim]
) -> list[Victim] | None:
    """The fewest victims on one host, or on as many as it needs, whose end lets ``wanted`` start; announced
    ones come first.

    ``None``: none would do.
    """
    by_host: dict[int, list[Victim]] = defaultdict(list)
    for victim in victims:
        if victim.priority > priority and victim.host in wanted.places:
            by_host[victim.host].append(victim)
    found = []
    for host in wanted.places if wanted.nodes > 1 else by_host:
        there = by_host[host]
        there.sort(key=lambda one: (not one.announced, -one.priority, -one.amount.gpus, one.id))
        here = [_enough(wanted, kind, machines[host], there) for kind in wanted.places[host] or (None,)]
        if enough := [taken for taken in here if taken is not None]:
            found.append(min(enough, key=_harm))
    if len(found) < wanted.nodes:
        return None
    return [one for taken in heapq.nsmallest(wanted.nodes, found, key=_harm) for one in taken]


def _harm(victims: Sequence[Victim]) -> tuple[int, int]:
    return sum(not one.announced for one in victims), len(victims)


def _enough(
    wanted: Wanted, kind: Kind | None, machine: Machine, victims: Sequence[Victim]
) -> list[Victim] | None:
    cpus, memory = machine.cpus_free, machine.memory_free_bytes
    gpus = machine.gpus_free.get(kind, 0) if kind else 0
    taken: list[Victim] = []
    for victim in [*victims, None]:
        if cpus >= wanted.cpus and memory >= wanted.memory_bytes and gpus >= wanted.gpus:
            return taken
        if victim is None:
            break
        if wanted.gpus and gpus < wanted.gpus and victim.amount.kind != kind:
            continue
        taken.append(victim)
        cpus, memory = cpus + victim.amount.cpus, memory + victim.amount.memory_bytes
        gpus += victim.amount.gpus if victim.amount.kind == kind else 0
    return None


async def preempt(work: Work) -> None:
    """One pass: announce, take back, stop what is due, and queue again what has stopped."""
    async with work.session() as db:
        snapshot = await snapshots.take(db)
        victims = await _victims(
            db, hosts={host.id: index for index, host in enumerate(snapshot.fleet.hosts)}
        )
        notice_s = await platform_settings.value(db, QUEUE_PREEMPTION_NOTICE_S)
    needed = _needed(snapshot, victims)
    for victim in {one.id: one for one in victims}.values():  # a task on several hosts is there for each
        with by_itself("queue-preemption", victim.id):
            if victim.id in needed and not victim.announced:
                await _announce(work, victim, notice_s=notice_s)
            elif victim.announced and victim.id not in needed:
                await _take_back(work, victim)
            elif victim.due:
                await _stop(work, victim, host_id=snapshot.fleet.hosts[victim.host].id)
    await _queue_again(work)


def _needed(snapshot: snapshots.Snapshot, victims: Sequence[Victim]) -> frozenset[str]:
    """Who must go for those that wait with a better priority, in their order."""
    left = list(victims)
    needed: set[str] = set()
    if not left:
        return frozenset()
    priorities = {one.ask.id: one.ask.priority for one in snapshot.waiting}
    requests = {one.ask.id: one.request for one in snapshot.waiting}
    for wanted in snapshot.front():
        if not any(victim.priority > priorities[wanted.id] for victim in left):
            continue
        if not isinstance(placement.choose_all(requests[wanted.id], snapshot.fleet), placement.Refusal):
            continue  # there is room: it starts in its turn
        taken = fewest(wanted, priorities[wanted.id], snapshot.machines, left)
        if taken:
            needed.update(one.id for one in taken)
            left = [one for one in left if one.id not in needed]
    return frozenset(needed)


async def _victims(db: AsyncSession, *, hosts: dict[str, int]) -> list[Victim]:
    row, task, attempt, held = tables.Environment, tables.Task, tables.Attempt, tables.Placement
    environments = _running(row).join(held, held.environment_id == row.id).where(row.desired == "running")
    of_tasks = (
        _running(task)
        .join(attempt, (attempt.task_id == task.id) & attempt.finished_at.is_(None))
        .join(held, held.attempt_id == attempt.id)
        .where(task.stop_requested_at.is_(None), attempt.stop_reason.is_(None))
    )
    return [
        *await _read(db, kind="environment", query=environments, hosts=hosts),
        *await _read(db, kind="task", query=of_tasks, hosts=hosts),
    ]


def _running(row: type[tables.Environment | tables.Task]) -> Select[Any]:
    return (
        select(row)
        .where(
            row.preemptible,
            row.status == "running",
            row.started_at + func.make_interval(0, 0, 0, 0, 0, 0, row.min_run_s) <= func.now(),
        )
        .order_by(row.id)
    )


async def _read(db: AsyncSession, *, kind: str, query: Select[Any], hosts: dict[str, int]) -> list[Victim]:
    row = tables.Environment if kind == "environment" else tables.Task
    held, promised, gpu = tables.Placement, tables.Allocation, tables.Gpu
    found = await db.execute(
        query.with_only_columns(
            row.id,
            held.host_id,
            row.priority,
            held.cpus,
            held.memory_bytes,
            row.preempt_at.is_not(None),
            func.coalesce(row.preempt_at <= func.now(), False),
            func.max(gpu.model),
            func.max(gpu.memory_total_bytes),
            func.max(gpu.mig_profile),
            func.count(gpu.id).filter(promised.memory_bytes.is_(None)),
        )
        .outerjoin(promised, (promised.placement_id == held.id) & promised.released_at.is_(None))
        .outerjoin(gpu, gpu.id == promised.gpu_id)
        .where(held.released_at.is_(None))
        .group_by(row.id, held.id)
    )
    return [
        Victim(
            id=key,
            kind=kind,
            host=hosts[host_id],
            priority=priority,
            amount=Amount(cpus, memory, gpus, (model, size, profile) if gpus else None),
            announced=announced,
            due=due,
        )
        for key, host_id, priority, cpus, memory, announced, due, model, size, profile, gpus in found
        if host_id in hosts
    ]


def _table(victim: Victim) -> Any:
    return tables.Environment if victim.kind == "environment" else tables.Task


async def _announce(work: Work, victim: Victim, *, notice_s: float) -> None:
    async with work.session() as db:
        row = _table(victim)
        found = await db.scalar(
            update(row)
            .where(row.id == victim.id, row.status == "running", row.preemptible, row.preempt_at.is_(None))
            .values(preempt_at=func.now() + timedelta(seconds=notice_s))
            .returning(row)
            .execution_options(populate_existing=True, synchronize_session=False)
        )
        if found is None:
            return
        at = found.preempt_at
        assert at is not None, "just set"
        message = (
            f"{found.name} is preemptible and will be stopped at {at:%H:%M} UTC for "
            "a request with a better priority. It goes back into the queue; save your work."
        )
        await _say(db, victim.kind, found, what="preempting", message=message)
        await notifications.tell(
            db,
            user_ids=[found.owner_id],
            kind=f"{victim.kind}.preempting",
            level="warning",
            message=message,
            subject_type=victim.kind,
            subject_id=found.id,
            data={"preempt_at": at.isoformat()},
        )


async def _take_back(work: Work, victim: Victim) -> None:
    async with work.session() as db:
        row = _table(victim)
        found = await db.scalar(
            update(row)
            .where(row.id == victim.id, row.status == "running")
            .values(preempt_at=None)
            .returning(row)
            .execution_options(populate_existing=True, synchronize_session=False)
        )
        if found is not None:
            message = f"{found.name} goes on: nobody needs its place any more."
            await _say(db, victim.kind, found, what="preemption_cancelled", message=message)


async def _stop(work: Work, victim: Victim, *, host_id: str) -> None:
    async with work.session() as db:
        if victim.kind == "task":
            message = "Stopped for a request with a better priority."
            await tasks.give_way(
                db, task_id=victim.id, host_id=host_id, reason=Reason.PREEMPTED, message=message
            )
            return
        environment = await queries.lock(db, environment_id=victim.id)
        if environment is None or environment.status != "running" or environment.desired != "running":
            return
        await stop.end(
            db,
            environment=environment,
            desired="stopped",
            reason=Reason.PREEMPTED,
            message="Stopped for a request with a better priority.",
            actor=SYSTEM,
        )


_SINCE = (Reason.PREEMPTED, Reason.HOST_BACK, Reason.HOST_REBOOTED, Reason.FORCED)
"""Reasons of what was preempted and has stopped: news of its host may have come in between."""


async def _queue_again(work: Work) -> None:
    row = tables.Environment
    stopped = (
        row.status == "stopped",
        row.desired == "stopped",
        row.preempt_at.is_not(None),
        row.reason.in_([str(reason) for reason in _SINCE]),
    )
    async with work.session() as db:
        found = (await db.scalars(select(row.id).where(*stopped))).all()
    for environment_id in found:
        with by_itself("queue-preemption", environment_id):
            async with work.session() as db:
                environment = await db.scalar(
                    select(row)
                    .where(row.id == environment_id, *stopped)
                    .with_for_update(key_share=True)
                    .execution_options(populate_existing=True)
                )
                if environment is None:
                    continue
                await lifecycle.move(
                    db,
                    environment=environment,
                    to=EnvironmentStatus.PENDING,
                    reason=Reason.PREEMPTED,
                    message="Stopped for a request with a better priority; waits to go on.",
                    actor=SYSTEM,
                    desired="running",
                    observed="absent",
                    generation=environment.generation + 1,
                    preempt_at=None,
                    outlook=None,
                    started_at=None,
                    stopped_at=None,
                )
                if environment.hub_managed:  # its secrets are gone: only the hub can start it again
                    await hub_starts.keep_again(db, environment=environment)


async def _say(
    db: AsyncSession, kind: str, row: tables.Environment | tables.Task, *, what: str, message: str
) -> None:
    await events.record(
        db,
        kind=f"{kind}.{what}",
        subject_type=kind,
        subject_id=row.id,
        actor=SYSTEM,
        reason=str(Reason.PREEMPTED),
        message=message,
        customer_id=row.customer_id,
        user_id=row.owner_id,
        workspace_id=row.workspace_id,
    )


LOOP = Loop(name="queue-preemption", every_s=5.0, run=preempt)
