"""GPUs that do not exist, for machines without one. Marked simulated in everything they report."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from remotegpu.types.agent import InventoryGpu
from remotegpu.types.hosts import ThrottleReason
from remotegpu_agent.gpus import GIB, GpuInventory, GpuSample
from remotegpu_agent.settings import SettingsError

_ENTRY = re.compile(
    r"^(?:(?P<count>\d{1,2})x)?(?P<family>[A-Za-z0-9][A-Za-z0-9-]{0,40}?)-(?P<memory>\d{1,4})GB"
    r"(?P<linked>\+nvlink)?(?:/(?P<instances>\d)x(?P<profile>\dg\.(?P<slice>\d{1,3})gb))?$"
)
_NAMESPACE = uuid.UUID("6f0a4a9e-5d0b-5c38-9a53-1f6a2f1f9d4e")
_PERIOD_S = 90.0
"""Length of one wave of the pretended load."""


class SimulatedGpus:
    """The same UUIDs for the same host on every start; load follows whether a workload holds the GPU."""

    def __init__(
        self, spec: str, *, host_id: str, failures: Path | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._wall = wall
        self._failures = failures
        self._gpus: list[InventoryGpu] = []
        for index, kind in enumerate(parse_spec(spec)):
            name = str(uuid.uuid5(_NAMESPACE, f"{host_id}/{index}"))
            gpu = InventoryGpu(
                uuid=f"GPU-SIM-{name}",
                index=index,
                model=kind.model,
                product=f"Simulated {kind.model}",
                memory_total_bytes=kind.memory_bytes,
                pci_bus_id=None,
                mig_enabled=True if kind.instances else None,
                numa_node=None,
                nvlink_group=kind.nvlink_group,
                simulated=True,
            )
            self._gpus.append(gpu)
            self._gpus += [_instance(gpu, kind, number) for number in range(kind.instances)]

    def inventory(self) -> GpuInventory:
        return GpuInventory(gpus=self._gpus)

    def sample(self, *, held: frozenset[str], processes: bool) -> list[GpuSample]:
        now, broken = self._wall(), self._broken()
        return [
            replace(self._sample(gpu, busy=gpu.uuid in held, now=now), unhealthy_reason=broken.get(gpu.uuid))
            for gpu in self._gpus
        ]

    def check(self, uuid: str) -> str | None:
        return next((why for name, why in self._broken().items() if name == uuid), None)

    def close(self) -> None:
        """Nothing is open."""

    def _broken(self) -> dict[str, str]:
        """By UUID, why a GPU pretends to be sick: lines ``INDEX REASON`` of the file, where there is one."""
        if self._failures is None or not self._failures.exists():
            return {}
        lines = (line.partition(" ") for line in self._failures.read_text().splitlines())
        told = {index: why.strip() for index, _, why in lines}
        return {gpu.uuid: told[str(gpu.index)] for gpu in self._gpus if str(gpu.index) in told}

    def _sample(self, gpu: InventoryGpu, *, busy: bool, now: float) -> GpuSample:
        wave = 0.5 + 0.5 * math.sin(2 * math.pi * (now / _PERIOD_S + gpu.index / 7))
        load = 35 + 60 * wave if busy else 0.0
        return GpuSample(
            uuid=gpu.uuid,
            utilization_percent=round(load, 1),
            memory_utilization_percent=round(load * 0.6, 1),
            memory_total_bytes=gpu.memory_total_bytes,
            memory_used_bytes=int(gpu.memory_total_bytes * (0.3 + 0.2 * wave)) if busy else 0,
            temperature_c=round(32 + load * 0.4, 1),
            power_w=round(55 + load * 3.2, 1),
            power_limit_w=400.0,
            sm_clock_mhz=1410.0 if busy else 210.0,
            memory_clock_mhz=1593.0,
            throttle_reasons=() if busy else (ThrottleReason.IDLE,),
        )


@dataclass(frozen=True)
class SimulatedGpu:
    """One GPU of a spec."""

    model: str
    memory_bytes: int
    nvlink_group: int | None = None
    instances: int = 0
    mig_profile: str = ""
    instance_bytes: int = 0


def _instance(gpu: InventoryGpu, kind: SimulatedGpu, number: int) -> InventoryGpu:
    changes = {
        "uuid": f"MIG-SIM-{uuid.uuid5(_NAMESPACE, f'{gpu.uuid}/{number}')}",
        "product": f"{gpu.product} MIG {kind.mig_profile}",
        "memory_total_bytes": kind.instance_bytes,
        "mig_enabled": None,
        "mig_profile": kind.mig_profile,
        "parent_uuid": gpu.uuid,
        "nvlink_group": None,
    }
    return gpu.model_copy(update=changes)


def parse_spec(spec: str) -> list[SimulatedGpu]:
    """``2xA100-80GB+nvlink,1xH100-80GB/7x1g.10gb`` -> each GPU. Raises SettingsError.

    ``+nvlink`` joins the GPUs of an entry; what follows a slash divides each of them into MIG instances.
    """
    found: list[SimulatedGpu] = []
    for number, entry in enumerate(spec.split(",")):
        match = _ENTRY.match(entry.strip())
        if match is None:
            raise SettingsError(
                f"Cannot read {entry.strip()!r} in --simulate-gpus: "
                "write COUNTxMODEL-MEMORYGB, such as 2xA100-80GB."
            )
        kind = SimulatedGpu(
            model=f"{match['family']}-{match['memory']}GB",
            memory_bytes=int(match["memory"]) * GIB,
            nvlink_group=number if match["linked"] else None,
            instances=int(match["instances"] or 0),
            mig_profile=match["profile"] or "",
            instance_bytes=int(match["slice"] or 0) * GIB,
        )
        found += [kind] * int(match["count"] or 1)
    if not 0 < sum(1 + kind.instances for kind in found) <= 64:
        raise SettingsError("--simulate-gpus takes 1 to 64 GPUs.")
    return found
