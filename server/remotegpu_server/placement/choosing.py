"""The choice: the owner's files first, then the cost, then bytes to fetch, topology, and spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from remotegpu_server.placement import refusals, rules, scoring
from remotegpu_server.placement.fleet import Array, Fleet, Mask
from remotegpu_server.placement.inventory import GpuInventory, Hold, HostInventory
from remotegpu_server.placement.mix import Floats
from remotegpu_server.placement.refusals import Refusal
from remotegpu_server.placement.request import Request

NEARLY = 50.0
"""Costs that differ by less are equal where locality and topology differ."""
EQUAL = 1e-6


@dataclass(frozen=True, slots=True)
class Choice:
    """A host and GPUs that fit."""

    host: HostInventory
    gpus: tuple[GpuInventory, ...]
    home_note: str | None
    hold: Hold
    """What it takes of the host, for :meth:`Fleet.take`."""


Ahead: TypeAlias = Request | Hold
"""What comes first: a request that waits for it knows not what yet, or the place that one was given."""


def choose(request: Request, fleet: Fleet, *, ahead: Iterable[Ahead] = ()) -> Choice | Refusal:
    """The best host and GPUs for ``request``, leaving alone what ``ahead`` waits for or was given."""
    first = list(ahead)
    everything, fleet = fleet, _left(fleet, [one for one in first if isinstance(one, Hold)])
    waiting = [one for one in first if isinstance(one, Request)]
    cost, slot = scoring.costs(request.bare(lent=fleet.lent), fleet)
    open_ = np.where(_kept(waiting, request, fleet), np.inf, cost) if waiting else cost
    if not _any(open_):
        fits = _any(cost) or (
            fleet is not everything and _any(scoring.costs(request.bare(lent=fleet.lent), everything)[0])
        )
        return refusals.behind(request, len(first)) if fits else refusals.refuse(request, everything)
    price = scoring.prices(fleet) if request.gpus else None
    if price is not None:
        open_ = open_ + price * scoring.milli(request, fleet)
    return _choice(request, fleet, _best(request, fleet, open_), slot)


def choose_all(
    request: Request, fleet: Fleet, *, ahead: Iterable[Ahead] = ()
) -> tuple[Choice, ...] | Refusal:
    """A place on each of ``request.nodes`` different hosts, all or nothing. The fleet stays as it is.

    Equal parts cannot get in each other's way: one after the other, they find room for all if there is any.
    """
    if request.nodes == 1:
        found = choose(request, fleet, ahead=ahead)
        return found if isinstance(found, Refusal) else (found,)
    if (few := refusals.too_few_hosts(request, fleet)) is not None:
        return few
    trial, ahead = fleet.copy(), tuple(ahead)
    placed: list[Choice] = []
    while len(placed) < request.nodes:
        found = choose(request, trial, ahead=ahead)
        if isinstance(found, Refusal):
            return refusals.some_of_many(found, placed=len(placed), wanted=request.nodes)
        placed.append(found)
        trial.take(found.hold)
        trial.close(found.host.id)
    return tuple(placed)


def _any(cost: Floats) -> bool:
    return bool(len(cost)) and bool(np.isfinite(cost.min()))


def _left(fleet: Fleet, given: Sequence[Hold]) -> Fleet:
    """Without the places that others were given."""
    if not given:
        return fleet
    trial = fleet.copy()
    for one in given:
        if trial.host(one.host_id) is not None:
            trial.take(one)
    return trial


def _kept(waiting: Iterable[Request], request: Request, fleet: Fleet) -> Mask:
    kept = np.zeros(len(fleet.rows), bool)
    for one in {one.bare(lent=True) for one in waiting}:
        kept |= rules.kept_for(one, request, fleet)
    return kept


def _best(request: Request, fleet: Fleet, cost: Floats) -> int:
    """The first in order of home, cost, bytes to fetch, topology, GPU memory and spread."""
    if request.homes:
        cost = _at_home(request, fleet, cost)
    preferring = bool(request.image_reference) or request.gpus > 1
    rows = np.flatnonzero(cost <= cost.min() + (NEARLY if preferring else EQUAL))
    if preferring:
        if request.image_reference:
            rows = _least(rows, np.array([_bytes_to_fetch(request, fleet.at(int(row))) for row in rows]))
        if request.gpus > 1:
            rows = _least(rows, _distance(request, fleet, rows))
        rows = rows[cost[rows] <= cost[rows].min() + EQUAL]
    if len(rows) > 1:
        rows = _least(rows, fleet.gpu_bytes[rows] if request.gpus else fleet.idle[rows])
        rows = _least(rows, fleet.placements[rows])
    return int(rows[0])


def _at_home(request: Request, fleet: Fleet, cost: Floats) -> Floats:
    """The costs of the rows with the newest home that can be had; the others are out."""
    newest: dict[tuple[str | None, str | None], int] = {}
    for rank, home in enumerate(request.homes):
        newest.setdefault((home.host_id, home.shared_home), rank)
    rows = np.flatnonzero(np.isfinite(cost))
    hosts = (fleet.at(int(row)) for row in rows)
    places = ((None, host.shared_home) if host.shared_home is not None else (host.id, None) for host in hosts)
    kept = _least(rows, np.array([newest.get(place, len(request.homes)) for place in places]))
    result = np.full(len(cost), np.inf)
    result[kept] = cost[kept]
    return result


def _distance(request: Request, fleet: Fleet, rows: Array) -> Array:
    """0 where the GPUs would reach each other over NVLink, 1 on one NUMA node, 2 elsewhere."""
    near = np.where(fleet.near[rows] >= request.gpus, 1, 2)
    distance: Array = np.where(fleet.linked[rows] >= request.gpus, 0, near)
    return distance


def _least(rows: Array, key: Array) -> Array:
    least: Array = rows[key == key.min()]
    return least


def _bytes_to_fetch(request: Request, host: HostInventory) -> int:
    return 0 if request.image_reference in host.images else max(request.image_bytes, 1)


def _choice(request: Request, fleet: Fleet, row: int, slot: Array) -> Choice:
    host = fleet.at(row)
    members = fleet.rows[row].gpus
    if request.shared:
        gpus: tuple[GpuInventory, ...] = (members[slot[row]],)
    elif request.gpus:
        whole = np.flatnonzero(fleet.free[row] == fleet.gpu_bytes[row])
        gpus = _closest([members[index] for index in whole], request.gpus)
    else:
        gpus = ()
    hold = Hold(
        host_id=host.id,
        cpus=request.cpus,
        memory_bytes=request.memory_bytes,
        gpus={gpu.id: request.gpu_memory_bytes for gpu in gpus},
    )
    return Choice(host=host, gpus=gpus, home_note=_home_note(request, host, fleet), hold=hold)


def _closest(free: Sequence[GpuInventory], count: int) -> tuple[GpuInventory, ...]:
    """GPUs of one NVLink group, else of one NUMA node, else any; of the smallest group that has enough."""
    if count == 1 and len(free) > 1:
        return (_loneliest(free),)
    for group_of in (_nvlink_group, _numa_node):
        groups: dict[int, list[GpuInventory]] = {}
        for gpu in free:
            group = group_of(gpu)
            if group is not None:
                groups.setdefault(group, []).append(gpu)
        enough = [members for members in groups.values() if len(members) >= count]
        if enough:
            return tuple(min(enough, key=len)[:count])
    return tuple(free[:count])


def _loneliest(free: Sequence[GpuInventory]) -> GpuInventory:
    """A single GPU is taken where it breaks the smallest group."""

    def company(gpu: GpuInventory) -> tuple[int, int]:
        return (
            sum(1 for other in free if other.nvlink_group == gpu.nvlink_group is not None),
            sum(1 for other in free if other.numa_node == gpu.numa_node is not None),
        )

    return min(free, key=company)


def _nvlink_group(gpu: GpuInventory) -> int | None:
    return gpu.nvlink_group


def _numa_node(gpu: GpuInventory) -> int | None:
    return gpu.numa_node


def _home_note(request: Request, host: HostInventory, fleet: Fleet) -> str | None:
    if not request.homes or request.homes[0].reachable_from(host):
        return None
    newest = request.homes[0]
    known = fleet.host(newest.host_id) if newest.host_id else None
    at = known.name if known else newest.shared_home or "another host"
    return (
        f"Your newest files lie on {at}, which cannot take this request now. "
        f"On {host.name} you get the home that is there; those files are not in it."
    )
