"""Measurements: GPUs and host once a second, aggregated between two heartbeats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from remotegpu.types.agent import HeartbeatGpu
from remotegpu.types.hosts import GpuMetrics, HostMetrics
from remotegpu_agent.gpus import GAUGES, GpuInventory, GpuProcess, GpuProvider, GpuSample

PROCESSES_EVERY = 2
"""Process lists are asked for on every so many samples: they are the dearest call."""
HOST_EVERY_S = 1.0
_VIRTUAL_NETWORKS = ("lo", "veth", "docker", "br-", "virbr", "rgpu")
"""What goes through these goes through a real one too, or does not leave the host."""


@dataclass(slots=True)
class _Gauge:
    """One value that goes up and down."""

    count: int = 0
    total: float = 0.0
    highest: float = 0.0

    def add(self, value: float) -> None:
        self.highest = value if self.count == 0 else max(self.highest, value)
        self.count += 1
        self.total += value

    @property
    def mean(self) -> float:
        return round(self.total / self.count, 1)


class _Gauges:
    """Values by name since the last heartbeat; of one that was never told there is none."""

    def __init__(self) -> None:
        self._seen: dict[str, _Gauge] = {}

    def add(self, name: str, value: float | None) -> None:
        if value is not None:
            self._seen.setdefault(name, _Gauge()).add(value)

    def mean(self, name: str) -> float | None:
        return self._seen[name].mean if name in self._seen else None

    def means(self, last: Mapping[str, object]) -> dict[str, float]:
        """Those that say more than the last value does."""
        return {name: one.mean for name, one in self._seen.items() if last.get(name) != one.mean}

    def highest(self, last: Mapping[str, object]) -> dict[str, float]:
        return {name: one.highest for name, one in self._seen.items() if last.get(name) != one.highest}


@dataclass
class _Window:
    """The samples of one GPU since the last heartbeat."""

    last: GpuSample
    gauges: _Gauges = field(default_factory=_Gauges)

    def add(self, sample: GpuSample) -> None:
        self.last = sample
        for name in GAUGES:
            self.gauges.add(name, getattr(sample, name))

    def heartbeat(self) -> HeartbeatGpu:
        last, gauges = self.last, self.gauges
        told = {name: getattr(last, name) for name in GpuMetrics.model_fields if hasattr(last, name)}
        highest = gauges.highest({})
        told |= {
            "utilization_percent": gauges.mean("utilization_percent"),
            "utilization_max_percent": highest.get("utilization_percent"),
        }
        return HeartbeatGpu(
            uuid=last.uuid,
            metrics=GpuMetrics(**told),
            mean=gauges.means(told),
            highest=gauges.highest(told),
            unhealthy_reason=last.unhealthy_reason,
        )


@dataclass(frozen=True, slots=True)
class WorkloadGpus:
    """What the processes of one workload have of GPUs, by UUID, where the driver tells."""

    memory_bytes: dict[str, int] = field(default_factory=dict)
    utilization_percent: dict[str, float] = field(default_factory=dict)


@dataclass
class Sampler:
    """Owns the one thread that talks to the driver, so that a driver that hangs holds up nothing else."""

    provider: GpuProvider
    every_s: float
    held: Callable[[], frozenset[str]]
    newest: dict[str, GpuSample] = field(default_factory=dict)
    """The last look at each GPU."""
    _windows: dict[str, _Window] = field(default_factory=dict)
    _processes: dict[str, tuple[GpuProcess, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpus")

    async def inventory(self) -> GpuInventory:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.provider.inventory)

    async def run(self) -> None:
        number = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await self.sample(processes=number % PROCESSES_EVERY == 0)
            number += 1
            await asyncio.sleep(max(0.0, self.every_s - (loop.time() - began)))

    async def sample(self, *, processes: bool) -> None:
        held = self.held()
        samples = await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: self.provider.sample(held=held, processes=processes)
        )
        self.newest = {sample.uuid: sample for sample in samples}
        for sample in samples:
            self._windows.setdefault(sample.uuid, _Window(sample)).add(sample)
        if processes:
            self._processes = {sample.uuid: sample.processes for sample in samples}

    async def check(self, uuid: str) -> str | None:
        """A self-test of one GPU: ``None`` when it works, else why not."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: self.provider.check(uuid)
        )

    def take(self) -> list[HeartbeatGpu]:
        """Mean and highest since the last call, and the newest of everything."""
        windows, self._windows = self._windows, {}
        return [window.heartbeat() for window in windows.values()]

    def workloads(self, workload_of_pid: Callable[[int], str | None]) -> dict[str, WorkloadGpus]:
        """By workload, what its processes have of the GPUs."""
        found: dict[str, WorkloadGpus] = {}
        for uuid, running in self._processes.items():
            for process in running:
                workload_id = workload_of_pid(process.pid)
                if workload_id is None:
                    continue
                one = found.setdefault(workload_id, WorkloadGpus())
                if process.memory_bytes is not None:
                    one.memory_bytes[uuid] = one.memory_bytes.get(uuid, 0) + process.memory_bytes
                if process.utilization_percent is not None:
                    one.utilization_percent[uuid] = round(
                        one.utilization_percent.get(uuid, 0.0) + process.utilization_percent, 1
                    )
        return found

    def gpu_memory_of(self, workload_of_pid: Callable[[int], str | None]) -> dict[str, dict[str, int]]:
        """Workload -> GPU -> bytes, where the driver tells."""
        return {
            workload_id: one.memory_bytes
            for workload_id, one in self.workloads(workload_of_pid).items()
            if one.memory_bytes
        }

    def close(self) -> None:
        self._thread.submit(self.provider.close)
        self._thread.shutdown(wait=False)


@dataclass(frozen=True, slots=True)
class HostReading:
    """Load of the host since the last heartbeat."""

    metrics: HostMetrics
    mean: dict[str, float]
    highest: dict[str, float]


class Meter(Protocol):
    """Measures a whole host."""

    async def run(self) -> None:
        """Look again and again, without end."""
        ...

    def read(self) -> HostReading: ...


class HostMeter:
    """Load of the whole host: looked at every second, read at heartbeats."""

    def __init__(self, home_root: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._home_root = home_root
        self._clock = clock
        self._gauges = _Gauges()
        self._counters: tuple[float, dict[str, int]] | None = None
        psutil.cpu_percent(interval=None)  # the first answer has nothing to compare with

    async def run(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(HOST_EVERY_S)

    def sample(self) -> None:
        rates = self._rates()
        if rates is None:
            return
        for name, rate in rates.items():
            self._gauges.add(name, rate)
        self._gauges.add("cpu_percent", psutil.cpu_percent(interval=None))
        self._gauges.add("memory_used_bytes", psutil.virtual_memory().used)

    def read(self) -> HostReading:
        """What was looked at since the last call, and the newest of the rest."""
        gauges, self._gauges = self._gauges, _Gauges()
        memory, load = psutil.virtual_memory(), psutil.getloadavg()
        homes, root = psutil.disk_usage(str(self._home_root)), psutil.disk_usage("/")
        told: dict[str, float | None] = {name: gauges.mean(name) for name in ("cpu_percent", *_COUNTERS)} | {
            "memory_used_bytes": memory.used,
            "memory_total_bytes": memory.total,
            "swap_used_bytes": psutil.swap_memory().used,
            "disk_used_bytes": homes.used,
            "disk_total_bytes": homes.total,
            "root_disk_used_bytes": root.used,
            "root_disk_total_bytes": root.total,
            "load_1m": load[0],
            "load_5m": load[1],
            "load_15m": load[2],
        }
        return HostReading(HostMetrics.model_validate(told), gauges.means(told), gauges.highest(told))

    def _rates(self) -> dict[str, float] | None:
        """Bytes per second since the last look; ``None`` where that was just now, or never."""
        now, counters = self._clock(), _byte_counters()
        before = self._counters
        if before is not None and now - before[0] < HOST_EVERY_S / 2:
            return None
        self._counters = (now, counters)
        if before is None:
            return {}
        return {
            name: round((value - before[1][name]) / (now - before[0]), 1)
            for name, value in counters.items()
            if value >= before[1].get(name, value + 1)  # a card that was pulled takes its count along
        }


_COUNTERS = (
    "network_rx_bytes_per_s",
    "network_tx_bytes_per_s",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
)


def _byte_counters() -> dict[str, int]:
    """What only grows, by the name of its rate; none where the kernel does not count it."""
    found = {}
    cards = [
        card
        for name, card in (psutil.net_io_counters(pernic=True) or {}).items()
        if not name.startswith(_VIRTUAL_NETWORKS)
    ]
    if cards:
        found["network_rx_bytes_per_s"] = sum(card.bytes_recv for card in cards)
        found["network_tx_bytes_per_s"] = sum(card.bytes_sent for card in cards)
    if (disks := psutil.disk_io_counters()) is not None:
        found["disk_read_bytes_per_s"] = disks.read_bytes
        found["disk_write_bytes_per_s"] = disks.write_bytes
    return found
