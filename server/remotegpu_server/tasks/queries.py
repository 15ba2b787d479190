"""SQL of tasks that is used more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from remotegpu_server.asks import HeldGpu
from remotegpu_server.db import tables
from remotegpu_server.queue import order


@dataclass(frozen=True, slots=True)
class Bundle:
    """A task with everything that its wire type shows."""

    task: tables.Task
    script: str | None
    """``None`` also where it was not asked for."""
    owner: tables.User
    image: tables.Image
    hosts: tuple[tuple[tables.Attempt, tables.Host], ...]
    """Where it is now, in the order of the ranks."""
    gpus: dict[str, list[HeldGpu]]
    """By attempt."""
    dependencies: tuple[tables.TaskDependency, ...]
    queue_position: int | None


async def bundles(db: AsyncSession, *, ids: Sequence[str], with_scripts: bool = True) -> list[Bundle]:
    """The tasks with these ids, in the order of ``ids``; unknown ids are left out. Scripts are large: many
    tasks are read without.
    """
    row = tables.Task
    rows = await db.execute(
        select(row, tables.User, tables.Image)
        .join(tables.User, tables.User.id == row.owner_id)
        .join(tables.Image, tables.Image.id == row.image_id)
        .where(row.id.in_(ids))
        .options(*([] if with_scripts else [defer(row.script)]))
        .execution_options(populate_existing=True)
    )
    found = {one[0].id: one for one in rows}
    hosts = await _hosts(db, task_ids=ids)
    with_gpus = [one.id for key, there in hosts.items() for one, _ in there if found[key].Task.gpus]
    gpus = await held_gpus(db, attempt_ids=with_gpus)
    after = await _dependencies(db, task_ids=ids)
    waiting = any(one[0].status == "pending" for one in found.values())
    positions = await order.positions(db) if waiting else {}
    return [
        Bundle(
            task=found[one].Task,
            script=found[one].Task.script if with_scripts else None,
            owner=found[one].User,
            image=found[one].Image,
            hosts=tuple(hosts.get(one, ())),
            gpus=gpus,
            dependencies=tuple(after.get(one, ())),
            queue_position=positions.get(one),
        )
        for one in ids
        if one in found
    ]


async def _hosts(
    db: AsyncSession, *, task_ids: Sequence[str]
) -> dict[str, list[tuple[tables.Attempt, tables.Host]]]:
    attempt = tables.Attempt
    rows = await db.execute(
        select(attempt, tables.Host)
        .join(tables.Host, tables.Host.id == attempt.host_id)
        .where(attempt.task_id.in_(task_ids), attempt.finished_at.is_(None))
        .order_by(attempt.rank)
        .execution_options(populate_existing=True)
    )
    found: dict[str, list[tuple[tables.Attempt, tables.Host]]] = defaultdict(list)
    for one, host in rows:
        found[one.task_id].append((one, host))
    return found


async def held_gpus(db: AsyncSession, *, attempt_ids: Sequence[str]) -> dict[str, list[HeldGpu]]:
    """Live allocations by attempt, in the order of the GPUs' index."""
    found: dict[str, list[HeldGpu]] = defaultdict(list)
    if not attempt_ids:
        return found
    held, gpu = tables.Allocation, tables.Gpu
    rows = await db.execute(
        select(tables.Attempt.id, held, gpu)
        .join(held, held.attempt_id == tables.Attempt.id)
        .join(gpu, gpu.id == held.gpu_id)
        .where(tables.Attempt.id.in_(attempt_ids), held.released_at.is_(None))
        .order_by(gpu.index, gpu.id)
    )
    for attempt_id, allocation, one in rows:
        found[attempt_id].append(HeldGpu(allocation, one))
    return found


async def _dependencies(
    db: AsyncSession, *, task_ids: Sequence[str]
) -> dict[str, list[tables.TaskDependency]]:
    row = tables.TaskDependency
    found: dict[str, list[tables.TaskDependency]] = defaultdict(list)
    for one in await db.scalars(select(row).where(row.task_id.in_(task_ids)).order_by(row.after_id)):
        found[one.task_id].append(one)
    return found


async def lock(db: AsyncSession, *, task_id: str) -> tables.Task | None:
    """The task's row, locked, with the values it has now. Lock order: host, task, attempt."""
    found: tables.Task | None = await db.scalar(
        select(tables.Task)
        .where(tables.Task.id == task_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return found


async def lock_tried(db: AsyncSession, *, attempt_id: str, host_id: str) -> tables.Task | None:
    """The same of the task that an attempt of this host tries."""
    row, attempt = tables.Task, tables.Attempt
    found: tables.Task | None = await db.scalar(
        select(row)
        .join(attempt, attempt.task_id == row.id)
        .where(attempt.id == attempt_id, attempt.host_id == host_id)
        .with_for_update(key_share=True, of=row)
        .execution_options(populate_existing=True)
    )
    return found


async def live_attempts(db: AsyncSession, *, task_id: str) -> Sequence[tables.Attempt]:
    """The attempts that have not ended, locked, in the order of their ranks."""
    row = tables.Attempt
    found = await db.scalars(
        select(row)
        .where(row.task_id == task_id, row.finished_at.is_(None))
        .order_by(row.rank)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return found.all()
