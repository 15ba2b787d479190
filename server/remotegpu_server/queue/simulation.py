"""When requests would start: the queue played forward over known ends and past run lengths. Pure.

Requests take their turn in order; a later one may start earlier only on hosts that no earlier one waits for.
"""

from __future__ import annotations

import bisect
import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

ROUNDS = 64
WORK = 150_000
"""Looks of one request at one host in all rounds together: bounds the time of a forecast."""
FEW = 5
"""Past runs below which nothing is said about a kind of work."""


Kind: TypeAlias = tuple[str, int, str | None]
"""Model, memory in bytes and MIG profile of GPUs that are alike."""


@dataclass(frozen=True, slots=True)
class Amount:
    """What something takes of a host."""

    cpus: float
    memory_bytes: int
    gpus: int = 0
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that runs: what it gives back, and what is known about when."""

    amount: Amount
    customer_id: str
    age_s: float
    ends_in_s: float | None
    """``None``: nobody has said; it is drawn from past runs."""
    id: str
    """Of the workload."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is free on a host, and what will be."""

    cpus_free: float
    memory_free_bytes: int
    gpus_free: Mapping[Kind, int]
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that waits."""

    id: str
    gpus: int
    """Whole ones; a share waits for a whole GPU here, which is on the safe side."""
    cpus: float
    memory_bytes: int
    customer_id: str
    places: Mapping[int, tuple[Kind, ...]]
    """By index of the machine, the kinds of GPU that would do there if nothing else ran."""
    runs_for_s: float | None = None
    """At most so long; ``None``: nobody has said."""
    nodes: int = 1
    """So many machines at the same time, each with all of the above."""


class PastRuns:
    """Sorted run lengths in seconds by customer and model, by model, and of all."""

    def __init__(self, runs: Mapping[tuple[str, str | None], Sequence[float]]) -> None:
        self._by_both = {key: sorted(lengths) for key, lengths in runs.items()}
        self._by_model: dict[str | None, list[float]] = {}
        for (_, model), lengths in runs.items():
            self._by_model.setdefault(model, []).extend(lengths)
        for lengths in self._by_model.values():
            lengths.sort()

    def left_s(self, customer_id: str, model: str | None, age_s: float, rng: random.Random) -> float:
        """Seconds that work of this age still runs; infinite where too little is known."""
        for lengths in (self._by_both.get((customer_id, model), []), self._by_model.get(model, [])):
            if len(lengths) >= FEW:
                longer = bisect.bisect_right(lengths, age_s)
                if longer < len(lengths):
                    return lengths[rng.randrange(longer, len(lengths))] - age_s
                return max(age_s * rng.random(), 1.0)  # older than anything seen: as long again at most
        return math.inf


@dataclass(slots=True)
class _Host:
    """One host on its way through a round."""

    cpus: float
    memory: int
    gpus: dict[Kind, int]
    ends: list[tuple[float, Amount]]
    reached_s: float = 0.0

    def earliest(self, wanted: Wanted, kinds: tuple[Kind, ...]) -> tuple[float, Kind | None]:
        """When it has room, and of which kind; infinite if never."""
        cpus, memory, gpus = self.cpus, self.memory, self.gpus
        at, copied = self.reached_s, False
        for end_s, amount in (*self.ends, (math.inf, None)):
            if cpus >= wanted.cpus and memory >= wanted.memory_bytes:
                kind = next((one for one in kinds if gpus.get(one, 0) >= wanted.gpus), None)
                if kind is not None or wanted.gpus == 0:
                    return at, kind
            if amount is None or end_s == math.inf:
                break
            if not copied:
                gpus, copied = dict(gpus), True
            at, cpus, memory = max(at, end_s), cpus + amount.cpus, memory + amount.memory_bytes
            if amount.kind is not None:
                gpus[amount.kind] = gpus.get(amount.kind, 0) + amount.gpus
        return math.inf, None

    def take(self, wanted: Wanted, at: float, kind: Kind | None, runs_for_s: float) -> None:
        """Let it run there from ``at`` on; nobody who comes later starts earlier here."""
        while self.ends and self.ends[0][0] <= at:
            amount = self.ends.pop(0)[1]
            self.cpus, self.memory = self.cpus + amount.cpus, self.memory + amount.memory_bytes
            if amount.kind is not None:
                self.gpus[amount.kind] = self.gpus.get(amount.kind, 0) + amount.gpus
        self.cpus, self.memory = self.cpus - wanted.cpus, self.memory - wanted.memory_bytes
        if kind is not None:
            self.gpus[kind] -= wanted.gpus
        self.reached_s = max(self.reached_s, at)
        taken = Amount(wanted.cpus, wanted.memory_bytes, wanted.gpus, kind)
        bisect.insort(self.ends, (at + runs_for_s, taken), key=lambda end: end[0])


def _play(
    queue: Sequence[Wanted], machines: Sequence[Machine], past: PastRuns, rng: random.Random
) -> dict[str, float]:
    hosts = [_host(machine, past, rng) for machine in machines]
    starts: dict[str, float] = {}
    for wanted in queue:
        at, taken = _soonest(wanted, hosts)
        starts[wanted.id] = at
        if not taken:
            continue
        runs_for_s = wanted.runs_for_s
        if runs_for_s is None:
            kind = taken[0][1]
            runs_for_s = past.left_s(wanted.customer_id, kind[0] if kind else None, 0.0, rng)
        for index, kind in taken:
            hosts[index].take(wanted, at, kind, runs_for_s)
    return starts


def _soonest(wanted: Wanted, hosts: Sequence[_Host]) -> tuple[float, list[tuple[int, Kind | None]]]:
    """When it can start, and where; infinite and nowhere if never. Of those that are equal the first."""
    found = []
    for index, kinds in wanted.places.items():
        at, kind = hosts[index].earliest(wanted, kinds)
        if at < math.inf:
            found.append((at, index, kind))
    if len(found) < wanted.nodes:
        return math.inf, []
    # What has room keeps it until somebody takes it: all are there when the last one is.
    best = heapq.nsmallest(wanted.nodes, found, key=lambda one: one[0])
    return best[-1][0], [(index, kind) for _, index, kind in best]


def _host(machine: Machine, past: PastRuns, rng: random.Random) -> _Host:
    ends = [(_end_s(holder, past, rng), holder.amount) for holder in machine.holders]
    return _Host(
        cpus=machine.cpus_free,
        memory=machine.memory_free_bytes,
        gpus=dict(machine.gpus_free),
        ends=sorted(ends, key=lambda end: end[0]),
    )


def _end_s(holder: Holder, past: PastRuns, rng: random.Random) -> float:
    if holder.ends_in_s is not None:
        return holder.ends_in_s
    model = holder.amount.kind[0] if holder.amount.kind else None
    return past.left_s(holder.customer_id, model, holder.age_s, rng)


def certain_starts_s(queue: Sequence[Wanted], machines: Sequence[Machine]) -> dict[str, float]:
    """By request, in how many seconds it starts at the latest, by known ends alone; infinite if unknown."""
    return _play(queue, machines, PastRuns({}), random.Random(0))  # noqa: S311


def likely_starts_s(
    queue: Sequence[Wanted], machines: Sequence[Machine], past: PastRuns, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """By request, the p50 and p90 of the seconds until it starts; infinite where too little is known."""
    looks = sum(len(wanted.places) for wanted in queue) or 1
    rounds = max(8, min(ROUNDS, WORK // looks))
    rng = random.Random(seed)  # noqa: S311
    played = [_play(queue, machines, past, rng) for _ in range(rounds)]
    result = {}
    for wanted in queue:
        starts = sorted(one[wanted.id] for one in played)
        result[wanted.id] = (starts[rounds // 2], starts[math.ceil(rounds * 0.9) - 1])
    return result
