"""Legal moves, declared once (pictures: ``docs/lifecycle.md``): of an environment's public status, of what an
admin wants of a host, of a host's dedication, of the save of an image, of tasks and of attempts.

The ``lifecycle`` modules move by them, and triggers in the database refuse everything else.
"""

from __future__ import annotations

INITIAL = "pending"

TRANSITIONS: dict[str, frozenset[str]] = {
    "pending": frozenset({"starting", "stopped", "deleted"}),
    "starting": frozenset({"running", "stopping", "failed", "unreachable"}),
    "running": frozenset({"stopping", "failed", "unreachable", "starting"}),
    "unreachable": frozenset({"running", "starting", "failed", "stopping"}),
    "stopping": frozenset({"stopped", "unreachable", "deleted"}),
    "stopped": frozenset({"pending", "deleted"}),
    "failed": frozenset({"pending", "deleted"}),
    "deleted": frozenset(),
}
"""By status, what may follow it. Staying the same is always legal."""

HOST_OPERATIONAL: dict[str, frozenset[str]] = {
    "pending": frozenset({"available", "cordoned", "retired"}),
    "available": frozenset({"cordoned", "draining", "maintenance", "retired"}),
    "cordoned": frozenset({"available", "draining", "maintenance", "retired"}),
    "draining": frozenset({"available", "cordoned", "maintenance", "retired"}),
    "maintenance": frozenset({"available", "cordoned", "retired"}),
    "retired": frozenset({"pending"}),
}
"""What an admin wants of a host. Only a host without live placements enters one of ``HOST_EMPTY``."""

HOST_EMPTY = frozenset({"maintenance", "retired"})

DEDICATION_STATUS: dict[str, frozenset[str]] = {
    "scheduled": frozenset({"active", "cancelled"}),
    "active": frozenset({"grace", "cleaning"}),
    "grace": frozenset({"active", "cleaning"}),
    "cleaning": frozenset({"ended"}),
    "ended": frozenset(),
    "cancelled": frozenset(),
}
"""A host's dedication; ``grace`` is left for ``active`` by an extension."""

IMAGE_SAVE_STATUS: dict[str, frozenset[str]] = {
    "requested": frozenset({"saving", "done", "failed", "cancelled"}),
    "saving": frozenset({"done", "failed", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""An environment that is saved as an image."""

ALERT_STATUS: dict[str, frozenset[str]] = {
    "pending": frozenset({"firing"}),
    "firing": frozenset({"resolved"}),
    "resolved": frozenset(),
}
"""What an alert rule says of one object; a pending one that is not true any more is removed."""

TASK_STATUS: dict[str, frozenset[str]] = {
    "pending": frozenset({"assigned", "cancelled"}),
    "assigned": frozenset({"running", "pending", "succeeded", "failed", "cancelled", "timed_out"}),
    "running": frozenset({"pending", "succeeded", "failed", "cancelled", "timed_out"}),
    "succeeded": frozenset(),
    "failed": frozenset({"pending"}),
    "cancelled": frozenset({"pending"}),
    "timed_out": frozenset({"pending"}),
}
"""A task; back to ``pending`` for another attempt, after an end only when somebody asks for it."""

_ATTEMPT_ENDS = frozenset({"succeeded", "failed", "cancelled", "timed_out", "lost", "preempted"})
ATTEMPT_STATUS: dict[str, frozenset[str]] = {
    "assigned": frozenset({"claimed", "cancelled", "lost", "preempted", "failed"}),
    "claimed": frozenset({"accepted", "cancelled", "lost", "preempted", "failed"}),
    "accepted": frozenset({"running"}) | _ATTEMPT_ENDS,
    "running": _ATTEMPT_ENDS,
    **{end: frozenset() for end in sorted(_ATTEMPT_ENDS)},
}
"""A try of a task on one host."""
