"""Legal moves of an environment's public status: the one declaration (picture: ``docs/lifecycle.md``).

``environments/lifecycle.py`` moves by it, and a trigger in the database refuses everything else.
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
