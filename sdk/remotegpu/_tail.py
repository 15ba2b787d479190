"""Output that is followed through a window on its newest lines."""

from __future__ import annotations

GAP = "[output was left out here: more came than was fetched]\n"
_ANCHOR = 200
"""Characters of a window's beginning that are looked for in the window before."""


class Tail:
    """Turns a window that moves over an output into the text that is new in it."""

    def __init__(self) -> None:
        self._before = ""

    def added(self, now: str) -> str:
        """What `now` has after the end of the window before; with a mark where the two do not touch."""
        before, self._before = self._before, now
        if not before:
            return now
        if not now:
            self._before = before
            return ""
        start = before.find(now[:_ANCHOR])
        while start >= 0:
            if now.startswith(before[start:]):
                return now[len(before) - start :]
            start = before.find(now[:_ANCHOR], start + 1)
        # The window may begin within the last characters of the one before.
        for length in range(min(_ANCHOR, len(before), len(now)), 0, -1):
            if before.endswith(now[:length]):
                return now[length:]
        return GAP + now
