"""Moving finished rows into the history tables, in small batches, so that the hot tables stay small.

An allocation goes with its placement; an environment that was deleted goes when nothing of it is left here,
and is not found any more from then on. Sums over ``all_allocations`` do not change by it.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Table, delete, func, insert, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import ENVIRONMENT_HISTORY_AFTER_S

BATCH = 500
BATCHES_PER_PASS = 20


async def move_finished(work: Work) -> None:
    """Until nothing old is left, or the pass has done enough."""
    for move in (_move_placements, _move_environments):
        for _ in range(BATCHES_PER_PASS):
            async with work.session() as db:
                after_s = await platform_settings.value(db, ENVIRONMENT_HISTORY_AFTER_S)
                if await move(db, timedelta(seconds=after_s)) < BATCH:
                    break


async def _move_placements(db: AsyncSession, age: timedelta) -> int:
    """Released ones with their allocations. What an admin released stays until its host proved it gone."""
    held, wanted, promised = tables.Placement, tables.Environment, tables.Allocation
    unproven = (
        (held.release_proof == "admin")
        & (held.generation == wanted.generation)
        & (wanted.observed != "absent")
    )
    old = (
        select(held.id)
        .outerjoin(wanted, wanted.id == held.environment_id)
        .where(held.released_at < func.now() - age, ~func.coalesce(unproven, False))
        .order_by(held.released_at)
        .limit(BATCH)
        .with_for_update(of=held, skip_locked=True)
    )
    ids = list((await db.scalars(old)).all())
    await _move(db, promised.__table__, tables.allocations_history, promised.placement_id.in_(ids))  # type: ignore[arg-type]
    await _move(db, held.__table__, tables.placements_history, held.id.in_(ids))  # type: ignore[arg-type]
    return len(ids)


async def _move_environments(db: AsyncSession, age: timedelta) -> int:
    """Deleted ones without a placement here."""
    row, held = tables.Environment, tables.Placement
    old = (
        select(row.id)
        .where(
            row.status == "deleted",
            func.coalesce(row.stopped_at, row.created_at) < func.now() - age,
            ~select(true()).where(held.environment_id == row.id).exists(),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    ids = list((await db.scalars(old)).all())
    await _move(db, row.__table__, tables.environments_history, row.id.in_(ids))  # type: ignore[arg-type]
    return len(ids)


async def _move(db: AsyncSession, live: Table, history: Table, which: object) -> None:
    names = [column.name for column in history.columns]
    gone = delete(live).where(which).returning(*(live.c[name] for name in names)).cte("gone")  # type: ignore[arg-type]
    await db.execute(insert(history).from_select(names, select(*(gone.c[name] for name in names))))


LOOP = Loop(name="history", every_s=60.0, run=move_finished)
