"""Measurements: each GPU once a second, aggregated between two heartbeats; the host when asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from remotegpu.types.agent import HeartbeatGpu
from remotegpu.types.hosts import GpuMetrics, HostMetrics
from remotegpu_agent.gpus import GpuInventory, GpuProvider, GpuSample

PROCESSES_EVERY = 5
"""Process lists are asked for on every so many samples: they are the dearest call."""


@dataclass
class _Window:
    """The samples of one GPU since the last heartbeat."""

    count: int = 0
    total: float = 0.0
    highest: float = 0.0
    last: GpuSample | None = None

    def add(self, sample: GpuSample) -> None:
        self.last = sample
        if sample.utilization_percent is not None:
            self.count += 1
            self.total += sample.utilization_percent
            self.highest = max(self.highest, sample.utilization_percent)


@dataclass
class Sampler:
    """Owns the one thread that talks to the driver, so that a driver that hangs holds up nothing else."""

    provider: GpuProvider
    every_s: float
    held: Callable[[], frozenset[str]]
    _windows: dict[str, _Window] = field(default_factory=dict)
    _processes: dict[str, tuple[tuple[int, int | None], ...]] = field(default_factory=dict)

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
        for sample in samples:
            self._windows.setdefault(sample.uuid, _Window()).add(sample)
            if processes:
                self._processes[sample.uuid] = sample.processes

    async def check(self, uuid: str) -> str | None:
        """A self-test of one GPU: ``None`` when it works, else why not."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: self.provider.check(uuid)
        )

    def take(self) -> list[HeartbeatGpu]:
        """Mean and highest load since the last call, and the newest of everything else."""
        windows, self._windows = self._windows, {}
        return [_heartbeat(uuid, window) for uuid, window in windows.items()]

    def gpu_memory_of(self, workload_of_pid: Callable[[int], str | None]) -> dict[str, dict[str, int]]:
        """Workload -> GPU -> bytes, where the driver tells."""
        found: dict[str, dict[str, int]] = {}
        for uuid, running in self._processes.items():
            for pid, memory in running:
                workload_id = workload_of_pid(pid)
                if workload_id is not None and memory is not None:
                    gpus = found.setdefault(workload_id, {})
                    gpus[uuid] = gpus.get(uuid, 0) + memory
        return found

    def close(self) -> None:
        self._thread.submit(self.provider.close)
        self._thread.shutdown(wait=False)


def _heartbeat(uuid: str, window: _Window) -> HeartbeatGpu:
    last = window.last or GpuSample(uuid=uuid)
    known = window.count > 0
    return HeartbeatGpu(
        uuid=uuid,
        metrics=GpuMetrics(
            utilization_percent=round(window.total / window.count, 1) if known else None,
            utilization_max_percent=window.highest if known else None,
            memory_utilization_percent=last.memory_utilization_percent,
            memory_used_bytes=last.memory_used_bytes,
            temperature_c=last.temperature_c,
            power_w=last.power_w,
            power_limit_w=last.power_limit_w,
            sm_clock_mhz=last.sm_clock_mhz,
            memory_clock_mhz=last.memory_clock_mhz,
            ecc_corrected=last.ecc_corrected,
            ecc_uncorrected=last.ecc_uncorrected,
            remapped_rows=last.remapped_rows,
            xid=last.xid,
        ),
        unhealthy_reason=last.unhealthy_reason,
    )


class HostMeter:
    """Load of the whole host since the last look."""

    def __init__(self, home_root: Path) -> None:
        self._home_root = home_root
        self._network: tuple[float, int, int] | None = None
        psutil.cpu_percent(interval=None)  # the first answer has nothing to compare with

    def read(self) -> HostMetrics:
        disk = psutil.disk_usage(str(self._home_root))
        received, sent = self._network_rates()
        return HostMetrics(
            cpu_percent=psutil.cpu_percent(interval=None),
            memory_used_bytes=psutil.virtual_memory().used,
            disk_used_bytes=disk.used,
            disk_total_bytes=disk.total,
            load_1m=psutil.getloadavg()[0],
            network_rx_bytes_per_s=received,
            network_tx_bytes_per_s=sent,
        )

    def _network_rates(self) -> tuple[float | None, float | None]:
        counters = psutil.net_io_counters()
        if counters is None:
            return None, None
        now = (time.monotonic(), counters.bytes_recv, counters.bytes_sent)
        before, self._network = self._network, now
        if before is None or now[0] - before[0] < 0.1:
            return None, None
        elapsed = now[0] - before[0]
        return (
            round(max(0, now[1] - before[1]) / elapsed, 1),
            round(max(0, now[2] - before[2]) / elapsed, 1),
        )
