"""All hosts as arrays, changed row by row.

One row is the GPUs of one kind (model, memory, MIG profile) on one host, or a host without GPUs; the rows of
a host repeat its CPU and memory. The version of a row grows with every change, so that whoever keeps results
by row knows which to make anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from remotegpu_server.placement.inventory import GpuInventory, Hold, HostInventory
from remotegpu_server.placement.mix import ABSENT, STEP, WHOLE, Mix
from remotegpu_server.placement.request import Request

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.bool_]

FULL = 1 + WHOLE // STEP
"""Index of a whole free GPU in the table of losses."""


@dataclass(frozen=True, slots=True)
class Row:
    """What an index stands for."""

    host: int
    kind: tuple[str, int, str | None] | None
    """Model, memory and MIG profile; ``None`` for a host without GPUs."""
    gpus: tuple[GpuInventory, ...]
    grouped: bool
    """Whether the inventory tells which GPUs are near each other."""


class Codes:
    """Small numbers for words, so that arrays can compare them."""

    def __init__(self) -> None:
        self._known: dict[object, int] = {None: 0}

    def of(self, word: object) -> int:
        return self._known.setdefault(word, len(self._known))

    def find(self, word: object) -> int:
        """-1 for a word that no host has."""
        return self._known.get(word, -1)

    def __len__(self) -> int:
        return len(self._known)


class Fleet:
    """Hosts, their free parts, and the mix of requests that they serve."""

    def __init__(self, hosts: Iterable[HostInventory] = (), *, mix: Mix | None = None) -> None:
        self.mix = mix if mix is not None else Mix()
        self.codes = Codes()
        self.version = self.static_version = 0
        self.caches: dict[object, Any] = {}
        """Results per kind of request, kept by ``scoring`` and ``rules``."""
        self.load(hosts)

    @property
    def hosts(self) -> Sequence[HostInventory]:
        """As they were loaded; what was taken since is in the arrays."""
        return self._hosts

    def host(self, host_id: str) -> HostInventory | None:
        index = self._index.get(host_id)
        return None if index is None else self._hosts[index]

    @property
    def lent(self) -> bool:
        """Whether any host is dedicated, so that it matters who asks."""
        return bool(self.customer.any() or self.workspace.any())

    def at(self, row: int) -> HostInventory:
        """The host of a row."""
        return self._hosts[int(self.host_of[row])]

    def load(self, hosts: Iterable[HostInventory]) -> None:
        """Forget everything and take these."""
        self._hosts = list(hosts)
        self._index = {host.id: index for index, host in enumerate(self._hosts)}
        self.rows = [row for index, host in enumerate(self._hosts) for row in _rows(index, host)]
        self._rows_of: dict[int, list[int]] = {}
        for number, row in enumerate(self.rows):
            self._rows_of.setdefault(row.host, []).append(number)
        self._allocate(len(self.rows), max((len(row.gpus) for row in self.rows), default=0))
        self.caches = {}
        self.static_version += 1
        for index in range(len(self._hosts)):
            self._fill(index)
        totals = sorted(row.kind[1] for row in self.rows for _ in row.gpus if row.kind and not row.kind[2])
        self.usual_gpu_bytes = totals[len(totals) // 2] if totals else 80 * 2**30

    def _allocate(self, rows: int, slots: int) -> None:
        self.host_of = np.array([row.host for row in self.rows], np.int64)
        self.ready = np.zeros(rows, bool)
        self.runtime, self.model, self.profile, self.pool, self.customer, self.workspace = (
            np.zeros(rows, np.int64) for _ in range(6)
        )
        self.gpu_bytes, self.gpu_total = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.cpus, self.cpus_free = np.zeros(rows), np.zeros(rows)
        self.memory, self.memory_free = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.free = np.full((rows, slots), -1, np.int64)
        """Bytes free of each GPU; -1 where there is none."""
        self.fill = np.full((rows, slots), ABSENT, np.int64)
        self.whole, self.idle = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.linked, self.near = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        """Most free GPUs in one NVLink group, and on one NUMA node."""
        self.placements = np.zeros(rows, np.int64)
        self.row_version = np.zeros(rows, np.int64)

    def update(self, host: HostInventory) -> None:
        """Take the present state of one host; a new one, or one with other GPUs, reloads all."""
        index = self._index.get(host.id)
        if index is None:
            self.load([*self._hosts, host])
            return
        rows = _rows(index, host)
        known = [self.rows[number] for number in self._rows_of[index]]
        before, self._hosts[index] = self._hosts[index], host
        if [(row.kind, [gpu.id for gpu in row.gpus]) for row in rows] != [
            (row.kind, [gpu.id for gpu in row.gpus]) for row in known
        ]:
            self.load(self._hosts)
            return
        for number, row in zip(self._rows_of[index], rows, strict=True):
            self.rows[number] = row
        self.static_version += _static(before) != _static(host)
        self._fill(index)

    def remove(self, host_id: str) -> None:
        """The host is gone."""
        self.load([host for host in self._hosts if host.id != host_id])

    def _fill(self, index: int) -> None:
        host = self._hosts[index]
        for number in self._rows_of[index]:
            row, of = self.rows[number], self.codes.of
            model, total, profile = row.kind or (None, 0, None)
            self.ready[number] = host.ready
            self.runtime[number], self.model[number] = of(host.runtime), of(model)
            self.profile[number], self.pool[number] = of(profile), of((model, total) if row.kind else None)
            self.customer[number] = of(host.dedicated_customer_id)
            self.workspace[number] = of(host.dedicated_workspace_id)
            self.gpu_bytes[number], self.gpu_total[number] = total, len(row.gpus)
            self.cpus[number], self.cpus_free[number] = host.cpus, host.cpus_free
            self.memory[number], self.memory_free[number] = host.memory_bytes, host.memory_free_bytes
            self.placements[number] = host.live_placements
            self.free[number, : len(row.gpus)] = [gpu.memory_free_bytes for gpu in row.gpus]
        self._changed(index)

    def _changed(self, index: int) -> None:
        """Derive what follows from the free parts of a host."""
        self.version += 1
        numbers = self._rows_of[index]
        for number in numbers:
            row, free, total = self.rows[number], self.free[number], self.gpu_bytes[number]
            whole = free == total
            self.whole[number] = 0 if row.kind is None else whole.sum()
            if row.kind is not None and row.kind[2] is None:
                milli = np.where(free < 0, -STEP, free * WHOLE // max(total, 1))
                self.fill[number] = 1 + milli // STEP
                self.idle[number] = milli[milli > 0].sum()
            if row.grouped:
                members = [gpu for gpu, is_whole in zip(row.gpus, whole, strict=False) if is_whole]
                self.linked[number] = _largest(gpu.nvlink_group for gpu in members)
                self.near[number] = _largest(gpu.numa_node for gpu in members)
            self.row_version[number] = self.version
        if len(numbers) > 1:
            # CPU feeds all GPUs of the host, whichever row they stand in.
            own = [number for number in numbers if (self.rows[number].kind or ("", 0, ""))[2] is None]
            self.idle[numbers] = sum(_idle(self.fill[number]) for number in own)

    def take(self, hold: Hold) -> None:
        """Count what a placement takes, before the database tells."""
        self._move(hold, 1)

    def give(self, hold: Hold) -> None:
        """Count what a placement gives back."""
        self._move(hold, -1)

    def close(self, host_id: str) -> None:
        """Let the host take nothing more."""
        for number in self._rows_of[self._index[host_id]]:
            self.ready[number] = False
        self.static_version += 1

    def _move(self, hold: Hold, sign: int) -> None:
        index = self._index[hold.host_id]
        for number in self._rows_of[index]:
            self.cpus_free[number] -= sign * hold.cpus
            self.memory_free[number] -= sign * hold.memory_bytes
            self.placements[number] += sign
            if not hold.gpus:
                continue
            for slot, gpu in enumerate(self.rows[number].gpus):
                if gpu.id in hold.gpus:
                    share = hold.gpus[gpu.id]
                    self.free[number, slot] -= sign * (gpu.memory_total_bytes if share is None else share)
        self._changed(index)

    def copy(self) -> Fleet:
        """The same fleet to try things on; what the two have seen and named stays common."""
        other = object.__new__(Fleet)
        other.__dict__.update(self.__dict__)
        for name, value in self.__dict__.items():
            if isinstance(value, np.ndarray):
                other.__dict__[name] = value.copy()
        other.caches = {}
        return other

    def with_free(self, host_id: str) -> HostInventory:
        """The host with what is free now, holds that were counted here included."""
        index = self._index[host_id]
        numbers = self._rows_of[index]
        free = {
            gpu.id: int(self.free[number, slot])
            for number in numbers
            for slot, gpu in enumerate(self.rows[number].gpus)
        }
        host = self._hosts[index]
        return replace(
            host,
            cpus_free=float(self.cpus_free[numbers[0]]),
            memory_free_bytes=int(self.memory_free[numbers[0]]),
            live_placements=int(self.placements[numbers[0]]),
            gpus=tuple(replace(gpu, memory_free_bytes=free[gpu.id]) for gpu in host.gpus),
        )

    def least_fraction(self, request: Request) -> float:
        """The least that one GPU of the request can count as, whichever it gets."""
        if request.gpu_memory_bytes is not None:
            return min(1.0, request.gpu_memory_bytes / max(int(self.gpu_bytes.max(initial=0)), 1))
        if request.mig_profile is None:
            return 1.0
        found = [
            gpu.fraction for row in self.rows for gpu in row.gpus if gpu.mig_profile == request.mig_profile
        ]
        return min(found, default=1.0)

    def saw(self, request: Request) -> None:
        """Learn from a request that arrived."""
        self.mix.saw(request, gpu_memory_bytes=self.usual_gpu_bytes)


def _rows(index: int, host: HostInventory) -> list[Row]:
    kinds: dict[tuple[str, int, str | None], list[GpuInventory]] = {}
    for gpu in sorted(host.gpus, key=lambda gpu: (gpu.index, gpu.id)):
        kinds.setdefault((gpu.model, gpu.memory_total_bytes, gpu.mig_profile), []).append(gpu)
    found = [Row(index, kind, tuple(gpus), _grouped(gpus)) for kind, gpus in kinds.items()]
    return found or [Row(index, None, (), False)]


def _grouped(gpus: Sequence[GpuInventory]) -> bool:
    return len(gpus) > 1 and any(gpu.nvlink_group is not None or gpu.numa_node is not None for gpu in gpus)


def _static(host: HostInventory) -> tuple[object, ...]:
    """What of a host does not change with what runs on it."""
    lent_to = (host.dedicated_customer_id, host.dedicated_workspace_id)
    holds = (host.datasets, host.images)
    return (host.ready, host.runtime, host.labels, host.cpus, host.memory_bytes, *holds, *lent_to)


def _largest(groups: Iterable[int | None]) -> int:
    counts: Mapping[int, int] = _count(group for group in groups if group is not None)
    return max(counts.values(), default=0)


def _count(groups: Iterable[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for group in groups:
        counts[group] = counts.get(group, 0) + 1
    return counts


def _idle(fill: Array) -> int:
    return int(np.maximum(fill - 1, 0).sum()) * STEP
