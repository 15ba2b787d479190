"""What a placement costs: the free GPU that typical requests will no longer be able to use, in thousandths.

Three parts: what the free parts of the GPUs lose; idle GPU that the CPU and memory left can no longer feed;
and hosts that no longer serve requests for several GPUs. A price is added for kinds of GPU that are needed by
requests which can use no other. Costs are kept per request and made anew only for rows that changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from remotegpu_server.placement import rules
from remotegpu_server.placement.fleet import FULL, Array, Fleet, Mask
from remotegpu_server.placement.mix import STEP, WHOLE, Floats, Lesson
from remotegpu_server.placement.request import Request

KEPT = 512
"""Requests whose costs are kept."""
REPRICE = 64
"""Changes of the fleet between two looks at the prices."""
ROUNDS = 4
"""Of balancing a demand over the kinds of GPU that serve it."""


@dataclass(slots=True)
class _Costs:
    """Of one request, by row."""

    cost: Floats
    """Infinite where it does not fit now."""
    slot: Array
    """The GPU that a share would take."""
    allowed: Mask
    """Rows that fit but for what is free."""
    at: int
    static_at: int


def costs(request: Request, fleet: Fleet) -> tuple[Floats, Array]:
    """The cost of a bare request on every row, without prices, and the GPU that a share would take.

    The arrays are kept for the next time: read them, do not write.
    """
    lesson = fleet.mix.lesson
    if fleet.caches.get("lesson") is not lesson:
        fleet.caches = {"lesson": lesson, "costs": {}}
    kept: dict[Request, _Costs] = fleet.caches["costs"]
    found = kept.get(request)
    if found is None or found.static_at != fleet.static_version:
        if len(kept) >= KEPT:
            del kept[next(iter(kept))]
        rows = np.arange(len(fleet.rows))
        allowed = rules.fits_unoccupied(request, fleet)
        cost, slot = _score(request, fleet, lesson, rows, allowed)
        found = kept[request] = _Costs(cost, slot, allowed, fleet.version, fleet.static_version)
    elif found.at != fleet.version:
        rows = np.flatnonzero(fleet.row_version > found.at)
        found.cost[rows], found.slot[rows] = _score(request, fleet, lesson, rows, found.allowed[rows])
        found.at = fleet.version
    return found.cost, found.slot


def _score(
    request: Request, fleet: Fleet, lesson: Lesson, rows: Array, allowed: Mask
) -> tuple[Floats, Array]:
    cpus, memory = fleet.cpus_free[rows], fleet.memory_free[rows]
    fits = allowed & (cpus >= request.cpus) & (memory >= request.memory_bytes)
    slot = np.zeros(len(rows), np.int64)
    taken = milli(request, fleet, rows)
    cost: Floats | float = 0.0
    if request.gpu_memory_bytes is not None:
        cost, slot = _share(request.gpu_memory_bytes, np.asarray(taken), fleet, lesson, rows)
    elif request.gpus:
        whole = fleet.whole[rows]
        fits &= whole >= request.gpus
        if request.mig_profile is None:
            cost = lesson.multi[whole] - lesson.multi[np.maximum(whole - request.gpus, 0)]
    idle = fleet.idle[rows]
    cost = cost + _stranded(lesson, idle - taken, cpus - request.cpus, memory - request.memory_bytes)
    cost = cost - _stranded(lesson, idle, cpus, memory)
    return np.where(fits, cost, np.inf), slot


def _share(
    share: int, taken: Array, fleet: Fleet, lesson: Lesson, rows: Array
) -> tuple[Floats | float, Array]:
    """The best GPU of each row for a share, and what it costs there."""
    fill = fleet.fill[rows]
    left = np.maximum(fill + (-taken // STEP)[:, None], 1)
    cost = lesson.loss[left] - lesson.loss[fill]
    whole = fleet.whole[rows]
    broken = lesson.multi[whole] - lesson.multi[np.maximum(whole - 1, 0)]
    cost += np.where(fill == FULL, broken[:, None], 0.0)
    cost[fleet.free[rows] < share] = np.inf
    if not cost.size:  # a fleet without any GPU
        return np.inf, np.zeros(len(rows), np.int64)
    slot = cost.argmin(1)
    return cost[np.arange(len(rows)), slot], slot


def milli(request: Request, fleet: Fleet, rows: Array | slice = slice(None)) -> Array | int:
    """Thousandths of a GPU that the request takes, by row for a share."""
    if request.gpu_memory_bytes is None:
        return 0 if request.mig_profile is not None else request.gpus * WHOLE
    return -(-request.gpu_memory_bytes * WHOLE // np.maximum(fleet.gpu_bytes[rows], 1))


def _stranded(lesson: Lesson, idle: Array, cpus: Floats, memory: Array) -> Floats:
    """Idle GPU beyond what typical requests could run with this CPU and memory."""
    fed = np.minimum(cpus * lesson.milli_per_cpu, memory * lesson.milli_per_byte)
    stranded: Floats = np.maximum(idle - fed, 0.0)
    return stranded


def prices(fleet: Fleet) -> Floats | None:
    """By row, what a thousandth of its GPUs costs those who can use no other; ``None``: nobody is."""
    lesson = fleet.mix.lesson
    if not lesson.demand:
        return None
    kept = fleet.caches.get("prices")
    if kept is None or fleet.version - kept[0] >= REPRICE:
        kept = fleet.caches["prices"] = (fleet.version, _prices(fleet, lesson))
    return kept[1]


def _prices(fleet: Fleet, lesson: Lesson) -> Floats:
    """The square of the part of a kind's idle GPU that bound requests will want, if all idle GPU is used."""
    pools = len(fleet.codes)
    own = (fleet.profile == 0) & (fleet.gpu_total > 0)
    milli = np.maximum(fleet.fill - 1, 0).sum(1) * STEP
    idle = np.bincount(fleet.pool[own], milli[own], pools)
    bound = [(serves, share) for serves, share in _serving(fleet, lesson, own) if len(serves)]
    weight, load = idle + 1.0, np.zeros(pools)
    for _ in range(ROUNDS):
        load = np.zeros(pools)
        for serves, share in bound:
            load[serves] += share * idle.sum() * weight[serves] / weight[serves].sum()
        weight *= (idle + 1.0) / np.maximum(load, (idle + 1.0) * 1e-3)
        weight /= weight.sum()
    return np.minimum(load / (idle + 1.0), 1.0)[fleet.pool] ** 2


def _serving(fleet: Fleet, lesson: Lesson, own: Mask) -> list[tuple[Array, float]]:
    """The kinds of GPU that serve each bound kind of request, with its share of demand."""
    demand: dict[Request, float] = {}
    for kind, share in lesson.demand:
        asked = Request(
            gpus=1,
            cpus=0,
            memory_bytes=0,
            runtime="",
            gpu_models=kind.gpu_models,
            min_gpu_memory_bytes=kind.min_gpu_memory_bytes,
            max_gpu_memory_bytes=kind.max_gpu_memory_bytes,
        )
        demand[asked] = demand.get(asked, 0.0) + share
    return [
        (np.unique(fleet.pool[own & rules.model(asked, fleet) & rules.gpu_memory(asked, fleet)]), share)
        for asked, share in demand.items()
    ]
