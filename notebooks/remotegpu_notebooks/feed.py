"""One background thread that reads the server while somebody looks, and at no other time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from remotegpu_notebooks.formatting import Reading
from remotegpu_notebooks.source import Source

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
LONGEST_PAUSE_S = 30.0
PATIENCE_S = 15.0
"""Without a sign of life from the browser for this long, a card counts as gone."""

Listener = Callable[[Reading], None]


@dataclass(eq=False)
class Watcher:
    """One card that wants readings."""

    listener: Listener
    last_seen: float


class Feed:
    """Hands readings to its watchers.

    The thread starts with the first watcher and ends when none is left. A watcher leaves by
    :meth:`unwatch`, or by not being :meth:`seen` for `PATIENCE_S`, and comes back when it is seen again.
    """

    def __init__(
        self,
        source: Source,
        *,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._source = source
        self._clock = clock
        self._busy = busy
        self._watchers: list[Watcher] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._failures = 0
        self.last: Reading | None = None
        self.idle = threading.Event()
        """Set while no thread runs."""
        self.idle.set()

    def watch(self, listener: Listener) -> Watcher:
        """Start to hand readings to a listener; it is called on the feed's thread."""
        watcher = Watcher(listener, self._clock())
        self.seen(watcher)
        return watcher

    def seen(self, watcher: Watcher) -> None:
        """The browser still shows this card."""
        with self._changed:
            watcher.last_seen = self._clock()
            if watcher not in self._watchers:
                self._watchers.append(watcher)
            if self._thread is None and not self._stopping:
                self.idle.clear()
                self._thread = threading.Thread(target=self._run, name="remotegpu-dashboard", daemon=True)
                self._thread.start()

    def unwatch(self, watcher: Watcher) -> None:
        """This card is gone."""
        with self._changed:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
            self._changed.notify_all()

    def wake(self) -> None:
        """Look again at once."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """End for good; a second stop is harmless."""
        with self._changed:
            self._stopping = True
            self._watchers.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while self._somebody_looks():
            self.last = self._read()
            self._failures = self._failures + 1 if self.last.error else 0
            for watcher in list(self._watchers):
                self._hand_over(self.last, watcher)
            with self._changed:
                if self._watchers:
                    self._changed.wait(self._pause_s())

    def _read(self) -> Reading:
        try:
            return self._source.read()
        except Exception as error:  # noqa: BLE001 - a fault of ours stands in the card, not in the user's output
            return Reading(error=f"The dashboard failed: {type(error).__name__}.")

    def _hand_over(self, reading: Reading, watcher: Watcher) -> None:
        try:
            watcher.listener(reading)
        except Exception:
            logger.exception("a dashboard could not be updated and is left alone")
            self.unwatch(watcher)

    def _somebody_looks(self) -> bool:
        with self._changed:
            if self._busy():
                # A busy kernel cannot hear the browser: that no sign of life comes means nothing then.
                for watcher in self._watchers:
                    watcher.last_seen = self._clock()
            limit = self._clock() - PATIENCE_S
            self._watchers = [watcher for watcher in self._watchers if watcher.last_seen >= limit]
            if not self._watchers:
                self._thread = None
                self.idle.set()
            return bool(self._watchers)

    def _pause_s(self) -> float:
        told_s = getattr(self._source, "retry_after_s", None) or 0.0
        backed_off_s = INTERVAL_S * 2.0 ** min(self._failures, 10) / (2.0 if self._failures else 1.0)
        return max(min(backed_off_s, LONGEST_PAUSE_S), min(told_s, LONGEST_PAUSE_S))
