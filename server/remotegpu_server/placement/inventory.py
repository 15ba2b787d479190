"""What hosts have, and what of it is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GpuInventory:
    """A GPU, or a MIG instance, which is a unit of its own."""

    id: str
    model: str
    index: int
    memory_total_bytes: int
    memory_free_bytes: int
    """All of it: nobody holds any part. 0 as well when it takes no new work."""
    simulated: bool = False
    numa_node: int | None = None
    nvlink_group: int | None = None
    """GPUs of one host with the same number reach each other over NVLink."""
    mig_profile: str | None = None
    fraction: float = 1.0
    """How much of a GPU it counts as: less than 1 for a MIG instance."""

    @property
    def free(self) -> bool:
        """Whether all of it is free."""
        return self.memory_free_bytes == self.memory_total_bytes > 0


@dataclass(frozen=True, slots=True)
class HostInventory:
    """What one host has, and what of it is free."""

    id: str
    name: str
    ready: bool
    not_ready_reason: str | None
    runtime: str
    cpus: float
    memory_bytes: int
    cpus_free: float
    memory_free_bytes: int
    gpus: tuple[GpuInventory, ...] = ()
    """All that the host reports, free or not."""
    shared_home: str | None = None
    images: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    live_placements: int = 0
    dedicated_customer_id: str | None = None
    dedicated_workspace_id: str | None = None
    """Whom it is lent to: it takes nobody else's work."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What one placement takes of one host."""

    host_id: str
    cpus: float
    memory_bytes: int
    gpus: Mapping[str, int | None] = field(default_factory=dict)
    """By GPU id the bytes of a share; ``None`` is the whole GPU."""
