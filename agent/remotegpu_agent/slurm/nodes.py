"""What a node of Slurm is as a host: its inventory, its health, and that it runs no environments."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from remotegpu.types.agent import InventoryGpu, Workload
from remotegpu.types.environments import Reason
from remotegpu.types.hosts import HostMetrics, RuntimeKind
from remotegpu.types.image_saves import ImageSaveReason
from remotegpu_agent.gpus import GIB, GpuInventory, GpuSample, marketed_gb
from remotegpu_agent.runtime import (
    Actual,
    BytesRead,
    Health,
    Progress,
    RuntimeUnavailable,
    SaveFailed,
    StartRefused,
    Usage,
)
from remotegpu_agent.sampling import HostReading
from remotegpu_agent.settings import SettingsError
from remotegpu_agent.slurm.commands import Node, Slurm

_NAMESPACE = uuid.UUID("0b5d3c1c-3f0e-5d4b-9a55-5e1f6f2f8a10")
_READY = frozenset({"idle", "mixed", "allocated", "completing", "planned"})
_SUFFIXES = "*~#!%$@^-+"
"""What ``sinfo`` adds to a state; only ``*``, not responding, keeps work away."""
_GRES = re.compile(r"gpu:(?:(?P<type>[A-Za-z][A-Za-z0-9_.-]*):)?(?P<count>\d+)(?:\([^)]*\))?$")
_NAMED = re.compile(r"^(?P<family>.+?)-(?P<memory>\d{1,4})GB$", re.IGNORECASE)


@dataclass(frozen=True)
class GpuType:
    """What a type of GRES is. The type of one without a name is empty."""

    name: str
    model: str
    memory_bytes: int


def gpu_type(name: str, told: Mapping[str, str]) -> GpuType:
    """``told``: by type, models such as ``A100-80GB``. Raises SettingsError where the memory is not known."""
    named = _NAMED.match(told.get(name or "gpu", name))
    if named is not None:
        family, memory = named["family"], int(named["memory"])
    elif (known := marketed_gb(name)) is not None:
        family, memory = name, known
    else:
        raise SettingsError(
            f"Slurm does not say how much memory a GPU of type {name or 'gpu'!r} has. "
            f"Say it once: --gpu {name or 'gpu'}=MODEL-MEMORYGB, such as a100=A100-80GB."
        )
    return GpuType(name, f"{family.upper()}-{memory}GB", memory * GIB)


def gres_gpus(gres: str, told: Mapping[str, str]) -> list[GpuType]:
    """``gpu:a100:2(S:0-1),shard:8`` -> each GPU. Raises SettingsError."""
    found: list[GpuType] = []
    for entry in re.split(r",(?![^(]*\))", gres):
        match = _GRES.match(entry.strip())
        if match is not None:
            found += [gpu_type(match["type"] or "", told)] * int(match["count"])
    return found


class NodeGpus:
    """The GPUs of one node: slots that Slurm fills, known by number alone. Nobody measures them here."""

    def __init__(self, host_id: str, types: Sequence[GpuType], *, simulated: bool) -> None:
        self._types: dict[str, str] = {}
        self._gpus: list[InventoryGpu] = []
        for index, kind in enumerate(types):
            name = f"{'GPU-SIM' if simulated else 'GPU-SLURM'}-{uuid.uuid5(_NAMESPACE, f'{host_id}/{index}')}"
            self._types[name] = kind.name
            self._gpus.append(
                InventoryGpu(
                    uuid=name,
                    index=index,
                    model=kind.model,
                    product=f"{'Simulated ' if simulated else ''}{kind.model}",
                    memory_total_bytes=kind.memory_bytes,
                    pci_bus_id=None,
                    mig_enabled=None,
                    numa_node=None,
                    simulated=simulated,
                )
            )

    def type_of(self, uuids: Sequence[str]) -> str:
        """Of the GPUs of one attempt, which are of one model. Raises StartRefused for unknown ones."""
        types = {self._types.get(one) for one in uuids}
        if len(types) != 1 or None in types:
            raise StartRefused(
                Reason.START_FAILED, "Slurm's node has changed: it has no such GPUs together any more."
            )
        return str(types.pop())

    def inventory(self) -> GpuInventory:
        return GpuInventory(gpus=self._gpus, reason=None if self._gpus else "Slurm names none for this node")

    def sample(self, *, held: frozenset[str], processes: bool) -> list[GpuSample]:
        """All unknown: a login node does not see them."""
        return [GpuSample(uuid=gpu.uuid) for gpu in self._gpus]

    def check(self, uuid: str) -> str | None:
        return None if uuid in self._types else "Slurm does not name this GPU any more."

    def close(self) -> None:
        """Nothing is open."""


def health_of(node: Node | None, *, name: str, partition: str) -> Health:
    """Whether Slurm starts new jobs there, in words."""
    if node is None:
        return Health(False, f"Slurm: partition {partition} has no node {name} any more")
    state = node.state.rstrip(_SUFFIXES)
    silent = "*" in node.state[len(state) :]
    if state in _READY and not silent:
        return Health(True, f"Slurm {node.version}, partition {partition}, node {name}")
    words = f"{state}, and does not respond" if silent and state != "down" else state
    return Health(False, f"Slurm: node {name} is {words}" + (f": {node.reason}" if node.reason else ""))


class NodeMeter:
    """The load of a node, as far as Slurm tells it, and the disk of the homes."""

    def __init__(self, home_root: Path) -> None:
        self._home_root = home_root
        self.memory_used_bytes: int | None = None
        """Set with each look at the node."""

    async def run(self) -> None:
        """Slurm is looked at with each probe of the node; there is nothing besides."""
        await asyncio.Event().wait()

    def read(self) -> HostReading:
        disk = psutil.disk_usage(str(self._home_root))
        told = HostMetrics(
            memory_used_bytes=self.memory_used_bytes, disk_used_bytes=disk.used, disk_total_bytes=disk.total
        )
        return HostReading(told, {}, {})


class NodeRuntime:
    """Environments on a node of Slurm: there are none, and none start."""

    kind = RuntimeKind.SLURM

    def __init__(self, slurm: Slurm, node_name: str, meter: NodeMeter) -> None:
        self._slurm = slurm
        self._node_name = node_name
        self._meter = meter

    async def probe(self) -> Health:
        try:
            node = (await self._slurm.nodes()).get(self._node_name)
        except RuntimeUnavailable as error:
            return Health(False, str(error)[:256])
        free = node.free_memory_mib if node is not None else None
        self._meter.memory_used_bytes = (
            max(0, node.memory_mib - free) * 2**20 if node is not None and free is not None else None
        )
        health = health_of(node, name=self._node_name, partition=self._slurm.partition)
        return Health(health.healthy, health.detail[:256])

    async def find(self, workload_id: str | None = None) -> list[Actual]:
        return []

    async def fetch_image(self, workload: Workload, progress: Progress) -> None:
        raise _no_environments()

    async def create(self, workload: Workload, epoch: int) -> str:
        raise _no_environments()

    async def start(self, key: str) -> Actual:
        raise _no_environments()

    async def stop(self, actual: Actual, grace_s: float) -> None:
        """There is none."""

    async def remove(self, workload_id: str, generation: int) -> None:
        """There is nothing of it."""

    def authorize(self, workload_id: str, keys: Sequence[str] | None) -> None:
        """There is nothing to enter."""

    async def logs(self, actual: Actual, tail_lines: int) -> tuple[str, bool]:
        return "", False

    async def wait_change(self) -> None:
        """Nothing ever changes; the observer looks at its own pace."""
        await asyncio.Event().wait()

    async def usage(self) -> dict[str, Usage]:
        return {}

    def workload_of_pid(self, pid: int) -> str | None:
        return None

    async def images(self) -> list[str]:
        return []

    async def save_image(self, actual: Actual, reference: str, max_bytes: int, progress: BytesRead) -> str:
        raise SaveFailed(ImageSaveReason.HOST_FAILED, "A node of Slurm has no images.")

    async def discard_image(self, reference: str) -> None:
        """There are none."""

    async def close(self) -> None:
        """Nothing is open."""


def _no_environments() -> StartRefused:
    return StartRefused(Reason.START_FAILED, "This host is a node of Slurm: it runs tasks, no environments.")
