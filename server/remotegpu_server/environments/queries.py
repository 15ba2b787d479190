"""SQL of environments that is used more than once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server import holds
from remotegpu_server.asks import HeldGpu
from remotegpu_server.db import tables
from remotegpu_server.hub_starts import service as hub_starts
from remotegpu_server.queue import order


@dataclass(frozen=True, slots=True)
class Bundle:
    """An environment with everything that its wire type shows."""

    environment: tables.Environment
    owner: tables.User
    image: tables.Image
    placement: tables.Placement | None
    host: tables.Host | None
    gpus: tuple[HeldGpu, ...]
    queue_position: int | None
    place_kept: bool


async def bundles(db: AsyncSession, *, ids: Sequence[str]) -> list[Bundle]:
    """The environments with these ids, in the order of ``ids``; unknown ids are left out."""
    wanted, held = tables.Environment, tables.Placement
    rows = await db.execute(
        select(wanted, tables.User, tables.Image, held, tables.Host)
        .join(tables.User, tables.User.id == wanted.owner_id)
        .join(tables.Image, tables.Image.id == wanted.image_id)
        .outerjoin(held, (held.environment_id == wanted.id) & held.released_at.is_(None))
        .outerjoin(tables.Host, tables.Host.id == held.host_id)
        .where(wanted.id.in_(ids))
        .execution_options(populate_existing=True)
    )
    gpus = await held_gpus(db, environment_ids=ids)
    found = {row[0].id: row for row in rows}
    waiting = any(row[0].status == "pending" for row in found.values())
    positions = await order.positions(db) if waiting else {}
    kept = await hub_starts.kept_ids(db, ids=list(found)) if waiting else set()
    return [
        Bundle(
            *found[one],
            gpus=tuple(gpus.get(one, ())),
            queue_position=positions.get(one),
            place_kept=one in kept,
        )
        for one in ids
        if one in found
    ]


async def held_gpus(db: AsyncSession, *, environment_ids: Sequence[str]) -> dict[str, list[HeldGpu]]:
    """Live allocations by environment, in the order of the GPUs' index."""
    rows = await db.execute(
        select(tables.Environment.id, tables.Allocation, tables.Gpu)
        .join(tables.Allocation, tables.Allocation.environment_id == tables.Environment.id)
        .join(tables.Gpu, tables.Gpu.id == tables.Allocation.gpu_id)
        .where(tables.Environment.id.in_(environment_ids), tables.Allocation.released_at.is_(None))
        .order_by(tables.Gpu.index, tables.Gpu.id)
    )
    result: dict[str, list[HeldGpu]] = {}
    for environment_id, allocation, gpu in rows:
        result.setdefault(environment_id, []).append(HeldGpu(allocation, gpu))
    return result


async def live_placement(db: AsyncSession, *, environment_id: str) -> tables.Placement | None:
    """The placement that is not released, if there is one."""
    held = tables.Placement
    found = select(held).where(held.environment_id == environment_id, held.released_at.is_(None))
    result: tables.Placement | None = await db.scalar(found.execution_options(populate_existing=True))
    return result


async def owner_id(db: AsyncSession, *, environment_id: str) -> str | None:
    """Whose it is; that never changes."""
    found: str | None = await db.scalar(
        select(tables.Environment.owner_id).where(tables.Environment.id == environment_id)
    )
    return found


async def lock(db: AsyncSession, *, environment_id: str) -> tables.Environment | None:
    """The environment's row, locked, with the values it has now.

    Lock order everywhere: quotas, host, environment, GPUs. So the host is locked first when there is one.
    """
    held = await live_placement(db, environment_id=environment_id)
    if held is not None:
        await holds.lock_host(db, host_id=held.host_id)
    found = select(tables.Environment).where(tables.Environment.id == environment_id)
    result: tables.Environment | None = await db.scalar(
        found.with_for_update(key_share=True).execution_options(populate_existing=True)
    )
    return result


async def now(db: AsyncSession) -> datetime:
    """The database's time, which decides."""
    found: datetime | None = await db.scalar(select(func.now()))
    assert found is not None
    return found


async def store(db: AsyncSession, environment: tables.Environment, **values: Any) -> tables.Environment:
    """Write columns beside the status, of a locked row."""
    row = tables.Environment
    changed = await db.scalar(
        update(row)
        .where(row.id == environment.id, row.generation == environment.generation)
        .values(**values)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert changed is not None, "the row is locked"
    return changed
