"""What the agent needs of anything that runs workloads. Docker and processes implement it alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from remotegpu.types.agent import Workload
from remotegpu.types.environments import Reason
from remotegpu.types.hosts import RuntimeKind
from remotegpu.types.image_saves import ImageSaveReason


class RuntimeUnavailable(Exception):
    """The engine did not answer. Nothing may be concluded about any workload."""


class StartRefused(Exception):
    """This workload cannot start, and trying again here changes nothing.

    ``PROCESS_LOST``: its place was lost before it began, and it may well start elsewhere.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class SaveFailed(Exception):
    """A workload could not be saved as an image, in words for who asked for it."""

    def __init__(self, reason: ImageSaveReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StillThere(Exception):
    """Something of a workload is left after it was stopped and removed; it still holds its GPUs."""


class ActualState(StrEnum):
    """What the runtime says of one instance."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    REMNANT = "remnant"
    """No container, but something that belongs to one: a network of a start that was cut short."""


@dataclass(frozen=True, kw_only=True)
class Actual:
    """One instance of a workload as the runtime lists it, known by its labels alone."""

    key: str
    """Container id, or the record of a process."""
    name: str
    workload_id: str
    generation: int
    state: ActualState
    address: str | None = None
    """``http://host:port`` of the published port, while it runs."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """By name, ``host:port`` of what it offers besides, while it runs."""
    ready_path: str = "/"
    """Where its server is asked whether it answers."""
    exit_code: int | None = None
    out_of_memory: bool = False
    gpu_uuids: tuple[str, ...] = ()
    image_digest: str | None = None


@dataclass(frozen=True)
class Health:
    """Whether the runtime can start workloads, and its version or what to do."""

    healthy: bool
    detail: str


@dataclass(frozen=True)
class Usage:
    """What one workload uses since it was last asked for."""

    cpu_percent: float | None
    memory_used_bytes: int | None
    connections: int | None = None
    """Open TCP connections to its servers from elsewhere."""


Progress = Callable[[int | None], None]
"""Called with percent, or ``None`` while it is unknown."""

BytesRead = Callable[[int], None]
"""Called with the bytes read so far."""


class Runtime(Protocol):
    """Every method may raise RuntimeUnavailable; none concludes "gone" from an engine that is silent."""

    kind: RuntimeKind

    async def probe(self) -> Health:
        """Ask the engine; never raises."""
        ...

    async def find(self, workload_id: str | None = None) -> list[Actual]:
        """Everything with this host's label, or all of it that belongs to one workload."""
        ...

    async def fetch_image(self, workload: Workload, progress: Progress) -> None:
        """Return when the image is on this host. Cancellation stops the transfer. Raises StartRefused."""
        ...

    async def create(self, workload: Workload, epoch: int) -> str:
        """Make it ready to start and return its key. Raises StartRefused, leaving nothing behind."""
        ...

    async def start(self, key: str) -> Actual:
        """Raises StartRefused; the instance is still to be removed then."""
        ...

    async def stop(self, actual: Actual, grace_s: float) -> None:
        """TERM, wait, KILL the whole tree. Returns when nothing of it runs."""
        ...

    async def remove(self, workload_id: str, generation: int) -> None:
        """Remove what is left of that generation and older ones; volumes stay."""
        ...

    def authorize(self, workload_id: str, keys: Sequence[str] | None) -> None:
        """Let exactly these SSH keys in, at once and while it runs; ``None``: it is gone, forget them.
        Raises OSError.
        """
        ...

    async def logs(self, actual: Actual, tail_lines: int) -> tuple[str, bool]:
        """The newest output, and whether older output was left out."""
        ...

    async def wait_change(self) -> None:
        """Return when the runtime saw a workload end. A hint: it may miss changes or see too many."""
        ...

    async def usage(self) -> dict[str, Usage]: ...

    def workload_of_pid(self, pid: int) -> str | None:
        """The workload that a process of this machine belongs to."""
        ...

    async def images(self) -> list[str]:
        """References present on this host."""
        ...

    async def save_image(self, actual: Actual, reference: str, max_bytes: int, progress: BytesRead) -> str:
        """Its file system, without what is mounted into it, as an image; answers the image's id.

        Cancellation leaves nothing behind. Raises SaveFailed.
        """
        ...

    async def discard_image(self, reference: str) -> None:
        """Forget a saved image, if it is there and nothing uses it."""
        ...

    async def close(self) -> None:
        """Let go of the engine. Workloads run on."""
        ...
