"""SQL of reservations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.reservations.promises import PoolGpu, Promise

_LOCK = 5_140_007
"""Key of the lock under which capacity is promised, and taken while anything is promised."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A reservation with what its wire type shows besides."""

    reservation: tables.Reservation
    created_by: str
    gpus_in_use: int


async def lock_promises(db: AsyncSession, *, exclusive: bool) -> None:
    """Nobody promises while others take without looking at promises (shared), and one at a time otherwise."""
    function = "pg_advisory_xact_lock" if exclusive else "pg_advisory_xact_lock_shared"
    await db.execute(text(f"SELECT {function}({_LOCK})"))


async def any_open(db: AsyncSession) -> bool:
    """Whether anything is promised."""
    row = tables.Reservation
    return bool(await db.scalar(select(select(row.id).where(row.ended_at.is_(None)).exists())))


async def open_promises(db: AsyncSession) -> list[Promise]:
    """Reservations that are not over."""
    row = tables.Reservation
    found = await db.scalars(select(row).where(row.ended_at.is_(None), row.ends_at > func.now()))
    return [promise_of(one) for one in found]


def promise_of(row: tables.Reservation) -> Promise:
    """The reservation as arithmetic sees it."""
    return Promise(
        id=row.id,
        gpus=row.gpus,
        model=row.gpu_model,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        customer_id=row.customer_id,
        workspace_id=row.workspace_id,
        labels=row.host_labels,
    )


async def pool(db: AsyncSession) -> list[PoolGpu]:
    """Whole GPUs that take work, with their holders. A GPU held in parts counts as held."""
    gpu, host, held = tables.Gpu, tables.Host, tables.Allocation
    environment, attempt, task = tables.Environment, tables.Attempt, tables.Task
    deadline_at = func.coalesce(environment.deadline_at, task.deadline_at)
    found = await db.execute(
        select(
            gpu.id,
            gpu.host_id,
            gpu.model,
            host.labels,
            func.count(held.id) > 0,
            func.bool_or(held.id.is_not(None) & deadline_at.is_(None)),
            func.max(deadline_at),
            func.max(func.coalesce(environment.reservation_id, task.reservation_id)),
        )
        .join(host, host.id == gpu.host_id)
        .outerjoin(held, (held.gpu_id == gpu.id) & held.released_at.is_(None))
        .outerjoin(environment, environment.id == held.environment_id)
        .outerjoin(attempt, attempt.id == held.attempt_id)
        .outerjoin(task, task.id == attempt.task_id)
        .where(gpu.health == "healthy", gpu.mig_profile.is_(None), host.inventory.is_not(None))
        .group_by(gpu.id, host.id)
        .order_by(gpu.id)
    )
    return [
        PoolGpu(key, host_id, model, labels, taken, None if open_end else ends_at, reservation_id)
        for key, host_id, model, labels, taken, open_end, ends_at, reservation_id in found
    ]


async def bundles(db: AsyncSession, *, ids: Sequence[str]) -> list[Bundle]:
    """The reservations with these ids, in their order."""
    row, user, held = tables.Reservation, tables.User, tables.Allocation
    environment, attempt, task = tables.Environment, tables.Attempt, tables.Task
    in_use = (
        select(func.count(held.id))
        .outerjoin(environment, environment.id == held.environment_id)
        .outerjoin(attempt, attempt.id == held.attempt_id)
        .outerjoin(task, task.id == attempt.task_id)
        .where(
            func.coalesce(environment.reservation_id, task.reservation_id) == row.id,
            held.released_at.is_(None),
        )
        .scalar_subquery()
    )
    found = await db.execute(
        select(row, user.username, in_use)
        .join(user, user.id == row.created_by)
        .where(row.id.in_(ids))
        .execution_options(populate_existing=True)
    )
    by_id = {one[0].id: Bundle(*one) for one in found}
    return [by_id[key] for key in ids if key in by_id]
