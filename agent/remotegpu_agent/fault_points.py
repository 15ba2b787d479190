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

_armed: str | None = None


def arm(label: str | None) -> None:
    """Choose the point at which :func:`hit` ends the process as ``kill -9`` would."""
    global _armed
    _armed = label


def hit(label: str) -> None:
    if label == _armed:
        os._exit(137)
