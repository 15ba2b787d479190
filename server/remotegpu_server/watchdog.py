"""Ends a process whose loops hang, so that whoever started it starts it again.

``PASS_DEADLINE_S`` cancels a pass that waits too long. This is for what no cancellation reaches: a call that
blocks the event loop, or a pass that swallows its cancellation. It watches from a thread of its own, and
counts its own ticks instead of reading a clock, so a process that was stopped as a whole (SIGSTOP, a
suspended machine) is not blamed for the time it did not have.
"""

from __future__ import annotations

import os
import threading

import structlog

EXIT_STATUS = 70
"""``EX_SOFTWARE`` of sysexits.h."""
_TICKS = 20
"""Looks per time limit."""
_log = structlog.get_logger(__name__)


class Watchdog:
    """Everything watched must say :meth:`alive` again within ``limit_s`` seconds, plus what it asked for."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._left: dict[str, float] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Watch nothing any more. A watchdog that never started may be stopped too."""
        self._ended.set()

    def alive(self, name: str, *, pause_s: float = 0.0) -> None:
        """``name`` works, and is going to say so again after a pause of ``pause_s`` seconds at most."""
        with self._lock:
            self._left[name] = self._limit_s + pause_s

    def forget(self, name: str) -> None:
        """``name`` ends as it should."""
        with self._lock:
            self._left.pop(name, None)

    def _watch(self) -> None:
        tick_s = self._limit_s / _TICKS
        while not self._ended.wait(tick_s):
            with self._lock:
                for name in self._left:
                    self._left[name] -= tick_s
                hung = [name for name, left in self._left.items() if left < 0]
            if hung:
                _log.critical("watchdog_exit", hung=hung, limit_s=self._limit_s)
                os._exit(EXIT_STATUS)
