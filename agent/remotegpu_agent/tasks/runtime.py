"""What running tasks needs of a runtime. Docker and processes implement it alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from remotegpu.types.agent import AttemptOutcome, ClaimedAttempt
from remotegpu.types.environments import Reason
from remotegpu_agent.tasks.folders import Folder


class Life(StrEnum):
    """What there is of an attempt."""

    NOTHING = "nothing"
    CREATED = "created"
    """Made, and never started."""
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Cause:
    """Who or what ended it, where that was not itself and nobody here."""

    outcome: AttemptOutcome
    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class End:
    """How it ended. ``None``: nobody knows."""

    exit_code: int | None
    out_of_memory: bool = False
    peak_memory_bytes: int | None = None
    search_path: str | None = None
    """Where commands were looked for."""
    cause: Cause | None = None


class TaskRuntime(Protocol):
    """Every method may raise RuntimeUnavailable, and StillThere where something does not go away."""

    @property
    def guarded(self) -> bool:
        """Whether the guard process of this machine ends its attempts when the agent cannot."""
        ...

    @property
    def limits(self) -> str:
        """For people: what holds its attempts in, where that is not what everybody expects."""
        ...

    async def prepare(self, spec: ClaimedAttempt, epoch: int, say: Callable[[str], Awaitable[None]]) -> None:
        """Return when its image, or its place, is here; cancellation stops the wait. Raises StartRefused.

        ``say`` tells people what it waits for.
        """
        ...

    async def start(self, spec: ClaimedAttempt, folder: Folder, epoch: int) -> None:
        """Create and start it; whatever exists of it was never started. Raises StartRefused."""
        ...

    def where(self, folder: Folder) -> str:
        """For people: what the engine calls it and gave it, where that says more than its host does."""
        ...

    async def look(self, folder: Folder) -> Life: ...

    async def wait_end(self, folder: Folder) -> None:
        """Return when its main process has ended."""
        ...

    async def terminate(self, folder: Folder) -> None:
        """TERM to all of it."""
        ...

    async def kill(self, folder: Folder) -> None:
        """KILL to all of it; returns when nothing of it runs and its output is complete."""
        ...

    async def end_of(self, folder: Folder) -> End | None:
        """What became of one that has ended; ``None``: somebody has removed it."""
        ...

    async def remove(self, folder: Folder) -> None:
        """Everything but the folder. Returns when nothing is left."""
        ...

    async def strays(self) -> list[str]:
        """Ids of all attempts of which there is something on this host."""
        ...

    async def memory(self, folder: Folder) -> int | None:
        """What it uses at the moment, or the most it did where the kernel tells."""
        ...

    def note_lease(self, folder: Folder, *, fence_at: float, grace_s: float) -> None:
        """Note when it must end (by :func:`folders.boottime`) for who ends it when the agent cannot."""
        ...

    def attempt_of_pid(self, pid: int) -> str | None:
        """The attempt that a process of this machine belongs to."""
        ...

    async def close(self) -> None: ...
