"""What the queue is decided on: everybody who waits, what is free, and what is known about later."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Select, Text, any_, bindparam, func, null, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from remotegpu.types.environments import Reason
from remotegpu_server import placement
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import tables
from remotegpu_server.placement import rules
from remotegpu_server.placing import Ask, nodes_of, request_of
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import ENVIRONMENT_START_SILENCE_S
from remotegpu_server.queue import order, simulation
from remotegpu_server.reservations import enforcement

FORESEEN = 100
"""Requests at the front of the queue whose start is estimated."""
STOP_MARGIN_S = 120.0
"""From a stop time until the proof that the GPUs are free: the agent's grace, and a heartbeat or two."""
REMEMBERED_RUNS = 5000
_HOLDS_NOBODY_UP = frozenset({Reason.QUOTA, Reason.REQUESTED, Reason.START_LATER})


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue."""

    ask: Ask
    image: tables.Image
    active: bool
    """False: its owner or customer is suspended."""
    kept: str | None
    """State of the place that is kept for a hub server."""
    request: placement.Request
    runs_for_s: float | None
    """From now until its GPUs would be free again, when it starts now; ``None``: nobody knows."""
    place: placement.Hold | None = None
    """What is free and kept for a hub server whose turn has come, until the hub has brought it."""

    @property
    def holds_up(self) -> bool:
        """Whether those behind must leave alone what it waits for. Who waits for an own quota waits for
        nobody else's GPU."""
        return Reason(self.ask.reason) not in _HOLDS_NOBODY_UP


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The queue in its order, at one moment of the database."""

    now: datetime
    waiting: tuple[Waiting, ...]
    fleet: placement.Fleet
    machines: tuple[simulation.Machine, ...]
    promises: enforcement.Promises

    def front(self) -> list[simulation.Wanted]:
        """The requests that wait for room, as many as are foreseen."""
        holding = [one for one in self.waiting if one.holds_up][:FORESEEN]
        places = {one.request: _places(one.request, self.fleet) for one in holding}
        return [_wanted(one, places[one.request]) for one in holding]

    def open_to(self, one: Waiting, fleet: placement.Fleet) -> placement.Fleet:
        """The fleet without what is promised to others at a time that this one would reach into."""
        return enforcement.without(fleet, self.promises.withheld_from(one.ask))

    def before(self, ask_id: str) -> list[Waiting]:
        """Those ahead of this request; all when it is not in the queue."""
        for place, one in enumerate(self.waiting):
            if one.ask.id == ask_id:
                return list(self.waiting[:place])
        return list(self.waiting)


def _places(request: placement.Request, fleet: placement.Fleet) -> dict[int, tuple[simulation.Kind, ...]]:
    found: dict[int, tuple[simulation.Kind, ...]] = {}
    for number in np.flatnonzero(rules.fits_unoccupied(request, fleet)):
        row = fleet.rows[int(number)]
        found[row.host] = found.get(row.host, ()) + ((row.kind,) if row.kind else ())
    return found


def _wanted(one: Waiting, places: dict[int, tuple[simulation.Kind, ...]]) -> simulation.Wanted:
    row = one.ask
    return simulation.Wanted(
        id=row.id,
        gpus=row.gpus,
        cpus=row.cpus,
        memory_bytes=row.memory_bytes,
        customer_id=row.customer_id,
        places=places,
        runs_for_s=one.runs_for_s,
        nodes=nodes_of(row),
    )


def blockers(one: Waiting, ahead: Iterable[Waiting], certain_s: dict[str, float]) -> list[placement.Ahead]:
    """What those ahead wait for or were given, where a start of ``one`` could delay them.

    ``certain_s`` says by when each surely starts. Work that is surely gone by then is in nobody's way.
    """
    return [
        other.place or other.request
        for other in ahead
        if other.place is not None
        or (other.holds_up and (one.runs_for_s is None or one.runs_for_s > certain_s.get(other.ask.id, 0.0)))
    ]


def certain_starts_s(snapshot: Snapshot) -> dict[str, float]:
    """By request at the front of the queue, in how many seconds it starts at the latest, by known ends."""
    front = snapshot.front()
    return {
        key: start_s
        for key, start_s in simulation.certain_starts_s(front, snapshot.machines).items()
        if start_s != float("inf")
    }


async def take(db: AsyncSession) -> Snapshot:
    """Everything at once: a constant number of statements."""
    moment = (await db.execute(select(func.now()))).scalar_one()
    waiting = await _waiting(db, ids=await order.waiting_ids(db), now=moment)
    hosts = await capacity.inventory(db)
    holders = await _holders(db)
    fleet, promises = placement.Fleet(hosts), await enforcement.look(db)
    return Snapshot(
        now=moment,
        waiting=tuple(_with_places(waiting, fleet, promises)),
        fleet=fleet,
        promises=promises,
        machines=tuple(_machine(host, holders.get(host.id, ())) for host in hosts),
    )


def _with_places(
    waiting: Sequence[Waiting], fleet: placement.Fleet, promises: enforcement.Promises
) -> Iterator[Waiting]:
    """Those whose turn has come each with a place that none of the others has; one that finds none waits."""
    given: list[placement.Ahead] = []
    for one in waiting:
        if one.kept == "due":
            open_to_it = enforcement.without(fleet, promises.withheld_from(one.ask))
            found = placement.choose(one.request, open_to_it, ahead=given)
            if isinstance(found, placement.Choice):
                given.append(found.hold)
                yield replace(one, place=found.hold)
                continue
        yield one


async def ahead_of(db: AsyncSession, *, ask_id: str) -> list[placement.Ahead]:
    """What must be left to those ahead of a request that was just made."""
    ids = await order.waiting_ids(db)
    if ask_id not in ids or ids[0] == ask_id:
        return []
    snapshot = await take(db)
    one = next(one for one in snapshot.waiting if one.ask.id == ask_id)
    certain_s = {} if one.runs_for_s is None else certain_starts_s(snapshot)
    return blockers(one, snapshot.before(ask_id), certain_s)


async def _waiting(db: AsyncSession, *, ids: list[str], now: datetime) -> list[Waiting]:
    environment, task, hub = tables.Environment, tables.Task, tables.HubStart
    waiting = bindparam("waiting", ids, ARRAY(Text))  # one value, however long the queue is
    starting_s = await platform_settings.value(db, ENVIRONMENT_START_SILENCE_S)
    found = [
        *await db.execute(
            _asking(environment, hub.state)
            .outerjoin(hub, hub.environment_id == environment.id)
            .where(environment.id == any_(waiting))
        ),
        *await db.execute(
            _asking(task, null())
            .options(*(defer(column, raiseload=True) for column in (task.script, task.command, task.env)))
            .where(task.id == any_(waiting))
        ),
    ]
    by_id = {
        ask.id: Waiting(
            ask=ask,
            image=image,
            active=active,
            kept=kept,
            request=request_of(ask, image).bare(lent=True),
            runs_for_s=_runs_for_s(ask, now=now, starting_s=starting_s),
        )
        for ask, image, active, kept in found
    }
    return [by_id[one] for one in ids if one in by_id]


def _asking(row: type[Ask], kept: Any) -> Select[Any]:
    user, customer = tables.User, tables.Customer
    return (
        select(row, tables.Image, (user.status == "active") & (customer.status == "active"), kept)
        .join(tables.Image, tables.Image.id == row.image_id)
        .join(user, user.id == row.owner_id)
        .join(customer, customer.id == row.customer_id)
        .execution_options(populate_existing=True)
    )


def _runs_for_s(ask: Ask, *, now: datetime, starting_s: float) -> float | None:
    """A lifetime counts from readiness, which a start that is not given up reaches within ``starting_s``."""
    known = []
    if ask.stop_at is not None:
        known.append((ask.stop_at - now).total_seconds())
    if ask.max_lifetime_s is not None:
        known.append(starting_s + ask.max_lifetime_s)
    return max(min(known), 0.0) + STOP_MARGIN_S if known else None


async def _holders(db: AsyncSession) -> dict[str, list[simulation.Holder]]:
    held, promised, gpu = tables.Placement, tables.Allocation, tables.Gpu
    environment, attempt, task = tables.Environment, tables.Attempt, tables.Task
    deadline_at = func.coalesce(environment.deadline_at, task.deadline_at)
    ending = (environment.desired != "running") | task.stop_requested_at.is_not(None)
    found = await db.execute(
        select(
            held.host_id,
            held.cpus,
            held.memory_bytes,
            held.customer_id,
            func.extract("epoch", func.now() - held.placed_at),
            func.extract("epoch", deadline_at - func.now()),
            func.coalesce(ending, False),
            func.coalesce(held.environment_id, task.id),
            func.max(gpu.model),
            func.max(gpu.memory_total_bytes),
            func.max(gpu.mig_profile),
            func.count(gpu.id).filter(promised.memory_bytes.is_(None)),
        )
        .outerjoin(environment, environment.id == held.environment_id)
        .outerjoin(attempt, attempt.id == held.attempt_id)
        .outerjoin(task, task.id == attempt.task_id)
        .outerjoin(promised, (promised.placement_id == held.id) & promised.released_at.is_(None))
        .outerjoin(gpu, gpu.id == promised.gpu_id)
        .where(held.released_at.is_(None))
        .group_by(held.id, environment.id, task.id)
    )
    result: dict[str, list[simulation.Holder]] = defaultdict(list)
    for host_id, cpus, memory, customer_id, age_s, left_s, ending_now, key, *kind, gpus in found:
        ends_in_s = None if left_s is None else max(float(left_s), 0.0) + STOP_MARGIN_S
        if ending_now:
            ends_in_s = STOP_MARGIN_S
        # What a share gives back adds up to a whole GPU only by chance: it counts as nothing.
        amount = simulation.Amount(cpus, memory, gpus, tuple(kind) if gpus else None)
        result[host_id].append(simulation.Holder(amount, customer_id, float(age_s), ends_in_s, key))
    return result


def _machine(host: placement.HostInventory, holders: Iterable[simulation.Holder]) -> simulation.Machine:
    free = Counter((gpu.model, gpu.memory_total_bytes, gpu.mig_profile) for gpu in host.gpus if gpu.free)
    return simulation.Machine(
        cpus_free=host.cpus_free,
        memory_free_bytes=host.memory_free_bytes,
        gpus_free=free,
        holders=tuple(holders),
    )


async def past_runs(db: AsyncSession) -> simulation.PastRuns:
    """How long work held its GPUs, the newest runs of the last 30 days."""
    held, promised, gpu = tables.Placement, tables.Allocation, tables.Gpu
    newest = (
        select(
            held.customer_id,
            select(func.max(gpu.model))
            .join(promised, promised.gpu_id == gpu.id)
            .where(promised.placement_id == held.id)
            .scalar_subquery()
            .label("model"),
            func.extract("epoch", held.released_at - held.placed_at).label("length_s"),
        )
        .where(held.released_at > func.now() - timedelta(days=30))
        .order_by(held.released_at.desc())
        .limit(REMEMBERED_RUNS)
    )
    runs: dict[tuple[str, str | None], list[float]] = defaultdict(list)
    for customer_id, model, length_s in await db.execute(newest):
        runs[customer_id, model].append(float(length_s))
    return simulation.PastRuns(runs)
