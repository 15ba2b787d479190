"""What a placement must satisfy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from remotegpu_server.placement.inventory import HostInventory


@dataclass(frozen=True, slots=True)
class Home:
    """A home volume of the owner: on one host, or under a shared root."""

    host_id: str | None
    shared_home: str | None

    def reachable_from(self, host: HostInventory) -> bool:
        if self.shared_home is not None:
            return host.shared_home == self.shared_home
        return host.shared_home is None and host.id == self.host_id


@dataclass(frozen=True, slots=True)
class Request:
    """A workload, or several equal ones that start together. Empty and ``None`` ask for nothing."""

    gpus: int
    """Whole GPUs of one model on one host; with ``gpu_memory_bytes`` or ``mig_profile`` parts of GPUs."""
    cpus: float
    memory_bytes: int
    runtime: str
    gpu_models: tuple[str, ...] = ()
    """Any of these."""
    gpu_memory_bytes: int | None = None
    """A memory share of one GPU, instead of the whole of it."""
    min_gpu_memory_bytes: int | None = None
    max_gpu_memory_bytes: int | None = None
    """Range of the whole GPU's memory."""
    mig_profile: str | None = None
    """MIG instances of this profile, instead of GPUs."""
    host_labels: tuple[tuple[str, str], ...] = ()
    """All of these, with these values."""
    customer_id: str | None = None
    workspace_id: str | None = None
    """Who asks: decides which dedicated hosts are open to it."""
    datasets: frozenset[str] = frozenset()
    """Must be cached on the host."""
    image_reference: str = ""
    local_image: bool = False
    """No registry has it: only hosts that have it will do."""
    image_bytes: int = 0
    """What a host without the image would fetch."""
    homes: tuple[Home, ...] = ()
    """Newest use first."""
    nodes: int = 1
    """So many hosts at once, each with all of the above; the other fields are of one of them."""

    @property
    def shared(self) -> bool:
        """Whether it takes a memory share of a GPU."""
        return self.gpu_memory_bytes is not None

    @property
    def constrained(self) -> bool:
        """Whether only some kinds of GPU will do."""
        return bool(self.gpu_models) or bool(self.min_gpu_memory_bytes or self.max_gpu_memory_bytes)

    def bare(self, *, lent: bool) -> Request:
        """Without what only ranks hosts: requests with the same bare form fit on the same hosts.

        Who asks matters only where hosts are ``lent``.
        """
        return replace(
            self,
            homes=(),
            image_reference=self.image_reference if self.local_image else "",
            image_bytes=0,
            customer_id=self.customer_id if lent else None,
            workspace_id=self.workspace_id if lent else None,
        )
