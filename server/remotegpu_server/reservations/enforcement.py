"""Capacity that is promised to others is not given out to work that would reach into their time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Conflict, NotFound
from remotegpu.types.environments import EnvironmentSpec, Reason
from remotegpu.types.tasks import TaskSpec
from remotegpu_server import placement
from remotegpu_server.db import tables
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import ENVIRONMENT_START_SILENCE_S, RESERVATION_HORIZON_S
from remotegpu_server.reservations import queries
from remotegpu_server.reservations.promises import PoolGpu, Promise, withheld


@dataclass(frozen=True, slots=True)
class Promises:
    """What is promised, on which GPUs, seen at one moment."""

    now: datetime
    horizon: datetime
    starting: timedelta
    """A lifetime counts from readiness, which comes so long after a start at the latest."""
    pool: tuple[PoolGpu, ...] = ()
    promised: tuple[Promise, ...] = ()

    def withheld_from(self, ask: tables.Environment | tables.Task) -> frozenset[PoolGpu]:
        """Free GPUs that this one must leave alone."""
        if not self.promised or not ask.gpus:
            return frozenset()
        ends = [ask.stop_at] if ask.stop_at else []
        if ask.max_lifetime_s is not None:
            ends.append(self.now + self.starting + timedelta(seconds=ask.max_lifetime_s))
        return withheld(
            self.pool,
            self.promised,
            now=self.now,
            reservation_id=ask.reservation_id,
            ends_at=min(ends, default=None),
            horizon=self.horizon,
        )


async def look(db: AsyncSession) -> Promises:
    """One look; cheap where nothing is promised."""
    now = (await db.execute(select(func.now()))).scalar_one()
    horizon_s = await platform_settings.value(db, RESERVATION_HORIZON_S)
    starting = timedelta(seconds=await platform_settings.value(db, ENVIRONMENT_START_SILENCE_S))
    promised = await queries.open_promises(db)
    pool = await queries.pool(db) if promised else []
    return Promises(now, now + timedelta(seconds=horizon_s), starting, tuple(pool), tuple(promised))


async def look_and_hold(db: AsyncSession) -> Promises:
    """The same, and nobody promises or takes what is promised until this transaction ends.

    Where nothing is promised, starts do not wait for each other: they share the lock.
    """
    promises = await queries.any_open(db)
    await queries.lock_promises(db, exclusive=promises)
    return await look(db)


def without(fleet: placement.Fleet, kept: frozenset[PoolGpu]) -> placement.Fleet:
    """The fleet as it looks to somebody who must leave these GPUs alone."""
    if not kept:
        return fleet
    trial = fleet.copy()
    for gpu in kept:
        if trial.host(gpu.host_id) is not None:
            trial.take(placement.Hold(host_id=gpu.host_id, cpus=0.0, memory_bytes=0, gpus={gpu.id: None}))
    return trial


def refusal(kept: frozenset[PoolGpu]) -> placement.Refusal:
    """There is room, and it is promised."""
    gpus = "1 free GPU is" if len(kept) == 1 else f"{len(kept)} free GPUs are"
    return placement.Refusal(
        satisfiable=True,
        reason=Reason.RESERVED,
        detail=f"{gpus} reserved for others, at a time that this would reach into.",
        hint="Set a stop time before the reservation, see `remotegpu reservation calendar`.",
        data={"reserved_gpus": len(kept)},
    )


async def columns_of(
    db: AsyncSession, *, workspace: tables.Workspace, body: EnvironmentSpec | TaskSpec
) -> dict[str, object]:
    """The reservation that a request runs in: the named one, or an active one of its own with room."""
    gpus = body.gpus * body.nodes if isinstance(body, TaskSpec) else body.gpus
    if body.reservation is None and (not body.gpus or body.gpu_memory_bytes is not None):
        return {}
    row, environment, task = tables.Reservation, tables.Environment, tables.Task
    of_environments = select(func.coalesce(func.sum(environment.gpus), 0)).where(
        environment.reservation_id == row.id, environment.status.not_in(["stopped", "failed", "deleted"])
    )
    of_tasks = select(func.coalesce(func.sum(task.gpus * task.nodes), 0)).where(
        task.reservation_id == row.id, task.finished_at.is_(None)
    )
    asked = of_environments.scalar_subquery() + of_tasks.scalar_subquery()
    found = select(row).where(
        row.customer_id == workspace.customer_id,
        row.workspace_id.is_(None) | (row.workspace_id == workspace.id),
        row.ended_at.is_(None),
        row.ends_at > func.now(),
    )
    if body.reservation is not None:
        chosen = await db.scalar(found.where(row.id == body.reservation))
        if chosen is None:
            raise NotFound("There is no such reservation for this workspace.")
        if gpus > chosen.gpus:
            raise Conflict(f"The reservation {chosen.name} is of {chosen.gpus} GPUs; {gpus} are asked for.")
    else:
        found = found.where(row.starts_at <= func.now(), asked + gpus <= row.gpus)
        if body.gpu_models:
            found = found.where(row.gpu_model.is_(None) | row.gpu_model.in_(body.gpu_models))
        chosen = await db.scalar(found.order_by(row.ends_at, row.id).limit(1))
    if chosen is None:
        return {}
    stop_at = body.stop_at if isinstance(body, EnvironmentSpec) else None
    return {
        "reservation_id": chosen.id,
        "stop_at": min(chosen.ends_at, stop_at) if stop_at else chosen.ends_at,
        "start_at": max(chosen.starts_at, body.start_at) if body.start_at else chosen.starts_at,
    }


async def used(db: AsyncSession, *, reservation_id: str | None) -> None:
    """Somebody came."""
    row = tables.Reservation
    await db.execute(
        update(row)
        .where(row.id == reservation_id, row.used_at.is_(None))
        .values(used_at=func.now())
        .execution_options(synchronize_session=False)
    )
