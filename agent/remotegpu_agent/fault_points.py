"""Named places between two visible effects, where a fault test may end the process."""

from __future__ import annotations

import os

CREATED = "created"
"""The container or record exists; nothing of it was started or reported."""
SPAWNED = "spawned"
"""A process runs, and its record does not say so yet."""
STARTED = "started"
"""It runs; neither the journal nor the server knows."""
STOPPED = "stopped"
"""It ended on request; it is not removed yet."""
REMOVED = "removed"
"""Nothing of it is left; the server does not know."""

TASK_CLAIMED = "task-claimed"
"""The answer to a claim has arrived; nothing of it is on disk."""
TASK_STORED = "task-stored"
"""The attempt is on disk; it is not accepted."""
TASK_ACCEPTED = "task-accepted"
"""The server has confirmed it; nothing was started."""
TASK_SUBMITTED = "task-submitted"
"""Slurm has its job, which was not told to begin; the agent has not noted it."""
TASK_READY = "task-ready"
"""All is here, and it waits for the other hosts of its task; the server does not know."""
TASK_SPAWNED = "task-spawned"
"""Its process runs, and its record does not say so yet."""
TASK_STARTED = "task-started"
"""It runs; the server does not know."""
TASK_ENDED = "task-ended"
"""It ended; its result is not on disk."""
TASK_KEPT = "task-kept"
"""Its result is on disk; the server does not know."""
TASK_PIECE = "task-piece"
"""A piece of its output has arrived at the server; the agent has not noted it."""
TASK_COMPLETED = "task-completed"
"""The server has its result; what it held is not released."""

_armed: str | None = None


def arm(label: str | None) -> None:
    """Choose the point at which :func:`hit` ends the process as ``kill -9`` would."""
    global _armed
    _armed = label


def hit(label: str) -> None:
    if label == _armed:
        os._exit(137)
