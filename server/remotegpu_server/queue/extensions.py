"""How long running work may be put off when others were promised what it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.queue import simulation
from remotegpu_server.queue import snapshot as snapshots
from remotegpu_server.reservations import enforcement
from remotegpu_server.reservations.promises import shortage


@dataclass(frozen=True, slots=True)
class Limit:
    """The latest end that delays nobody who was promised better, and why."""

    latest_at: datetime
    why: str


async def limit(db: AsyncSession, *, environment: tables.Environment, until: datetime) -> Limit | None:
    """What forbids that a locked environment runs ``until``; ``None``: nothing does.

    The rule is the one for starts: who started ahead of an older request was let pass because it is gone when
    that one surely starts, so it stays gone by then. Work that ran before they asked is not bound.
    """
    found = [
        await _by_reservations(db, environment=environment, until=until),
        await _by_those_it_passed(db, environment=environment, until=until),
    ]
    return min((one for one in found if one is not None), key=lambda one: one.latest_at, default=None)


async def _by_those_it_passed(
    db: AsyncSession, *, environment: tables.Environment, until: datetime
) -> Limit | None:
    waiting, held = tables.Environment, tables.Placement
    passed = await db.scalars(
        select(waiting.id)
        .join(held, (held.environment_id == environment.id) & held.released_at.is_(None))
        .where(
            waiting.status == "pending",
            waiting.queued_at < held.placed_at,
            waiting.priority <= environment.priority,
        )
    )
    ids = set(passed.all())
    if not ids:
        return None
    snapshot = await snapshots.take(db)
    front = snapshot.front()

    def starts_s(end: datetime) -> dict[str, float]:
        ends_in_s = max((end - snapshot.now).total_seconds(), 0.0) + snapshots.STOP_MARGIN_S
        machines = _with_end(snapshot.machines, environment.id, ends_in_s)
        return simulation.certain_starts_s(front, machines)

    assert environment.deadline_at is not None, "only a known end is put off"
    promised = starts_s(environment.deadline_at)

    def delayed(end: datetime) -> list[float]:
        then = starts_s(end)
        return [start_s for key, start_s in promised.items() if key in ids and then[key] > start_s]

    late = delayed(until)
    if not late:
        return None
    latest = snapshot.now + timedelta(seconds=math.floor(min(late) - snapshots.STOP_MARGIN_S))
    if latest <= environment.deadline_at or delayed(latest):
        latest = environment.deadline_at
    return Limit(latest, "a request that is older than its start waits for what it holds, and starts then")


def _with_end(
    machines: Sequence[simulation.Machine], environment_id: str, ends_in_s: float
) -> list[simulation.Machine]:
    return [
        replace(
            machine,
            holders=tuple(
                replace(one, ends_in_s=ends_in_s) if one.id == environment_id else one
                for one in machine.holders
            ),
        )
        for machine in machines
    ]


async def _by_reservations(
    db: AsyncSession, *, environment: tables.Environment, until: datetime
) -> Limit | None:
    """The first reservation that would miss a GPU only because of this."""
    promises = await enforcement.look(db)
    mine = await _gpus_of(db, environment_id=environment.id) if promises.promised else set()
    longer = [replace(gpu, ends_at=until) if gpu.id in mine else gpu for gpu in promises.pool]
    for one in sorted(promises.promised, key=lambda promise: promise.starts_at):
        if one.id == environment.reservation_id or not promises.now < one.starts_at < until:
            continue
        others = [other for other in promises.promised if other.id != one.id]
        before = shortage(one, promises.pool, others, gone_by=promises.horizon)
        after = shortage(one, longer, others, gone_by=promises.horizon)
        if after is not None and (before is None or after[0] > before[0]):
            return Limit(one.starts_at, "what it holds is reserved for others from then on")
    return None


async def _gpus_of(db: AsyncSession, *, environment_id: str) -> set[str]:
    promised = tables.Allocation
    found = await db.scalars(
        select(promised.gpu_id)
        .join(tables.Placement, tables.Placement.id == promised.placement_id)
        .where(tables.Placement.environment_id == environment_id, promised.released_at.is_(None))
    )
    return set(found.all())
