"""Named points where tests may end the process, as a crash would (``REMOTEGPU_CRASH_AT=<label>[:<n>]``)."""

from __future__ import annotations

import os

COMMITS = frozenset({"before_commit", "after_commit"})
"""Around the commit of a request that changes something."""
LABELS = COMMITS | {"after_blob"}
"""Also between a blob and the row that tells of it."""


class FaultPoints:
    """Counts how often a label is reached, and exits hard at the chosen one."""

    def __init__(self, crash_at: str | None) -> None:
        label, _, count = (crash_at or "").partition(":")
        if label and label not in LABELS:
            raise ValueError(f"REMOTEGPU_CRASH_AT: {label!r} is not one of {', '.join(sorted(LABELS))}")
        self._label = label
        self._left = int(count or 1)

    def reach(self, label: str) -> None:
        """Exit with status 137 when this is the chosen point; otherwise nothing."""
        if label != self._label:
            return
        self._left -= 1
        if self._left == 0:
            os._exit(137)
