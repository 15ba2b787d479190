"""GPUs that do not exist, for machines without one. Marked simulated in everything they report."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable

from remotegpu.types.agent import InventoryGpu
from remotegpu_agent.gpus import GIB, GpuInventory, GpuSample
from remotegpu_agent.settings import SettingsError

_ENTRY = re.compile(r"^(?:(\d{1,2})x)?([A-Za-z0-9][A-Za-z0-9-]{0,40}?)-(\d{1,4})GB$")
_NAMESPACE = uuid.UUID("6f0a4a9e-5d0b-5c38-9a53-1f6a2f1f9d4e")
_PERIOD_S = 90.0
"""Length of one wave of the pretended load."""


class SimulatedGpus:
    """The same UUIDs for the same host on every start; load follows whether a workload holds the GPU."""

    def __init__(self, spec: str, *, host_id: str, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._gpus: list[InventoryGpu] = []
        for model, memory in parse_spec(spec):
            index = len(self._gpus)
            name = str(uuid.uuid5(_NAMESPACE, f"{host_id}/{index}"))
            self._gpus.append(
                InventoryGpu(
                    uuid=f"GPU-SIM-{name}",
                    index=index,
                    model=model,
                    product=f"Simulated {model}",
                    memory_total_bytes=memory,
                    pci_bus_id=None,
                    mig_enabled=None,
                    numa_node=None,
                    simulated=True,
                )
            )

    def inventory(self) -> GpuInventory:
        return GpuInventory(gpus=self._gpus)

    def sample(self, *, held: frozenset[str], processes: bool) -> list[GpuSample]:
        now = self._wall()
        return [self._sample(gpu, busy=gpu.uuid in held, now=now) for gpu in self._gpus]

    def close(self) -> None:
        """Nothing is open."""

    def _sample(self, gpu: InventoryGpu, *, busy: bool, now: float) -> GpuSample:
        wave = 0.5 + 0.5 * math.sin(2 * math.pi * (now / _PERIOD_S + gpu.index / 7))
        load = 35 + 60 * wave if busy else 0.0
        return GpuSample(
            uuid=gpu.uuid,
            utilization_percent=round(load, 1),
            memory_utilization_percent=round(load * 0.6, 1),
            memory_used_bytes=int(gpu.memory_total_bytes * (0.3 + 0.2 * wave)) if busy else 0,
            temperature_c=round(32 + load * 0.4, 1),
            power_w=round(55 + load * 3.2, 1),
            power_limit_w=400.0,
            sm_clock_mhz=1410.0 if busy else 210.0,
            memory_clock_mhz=1593.0,
        )


def parse_spec(spec: str) -> list[tuple[str, int]]:
    """``2xA100-80GB,1xH100-80GB`` -> model and memory in bytes of each GPU. Raises SettingsError."""
    found: list[tuple[str, int]] = []
    for entry in spec.split(","):
        match = _ENTRY.match(entry.strip())
        if match is None:
            raise SettingsError(
                f"Cannot read {entry.strip()!r} in --simulate-gpus: "
                "write COUNTxMODEL-MEMORYGB, such as 2xA100-80GB."
            )
        count, family, memory = int(match[1] or 1), match[2], int(match[3])
        found += [(f"{family}-{memory}GB", memory * GIB)] * count
    if not 0 < len(found) <= 64:
        raise SettingsError("--simulate-gpus takes 1 to 64 GPUs.")
    return found
