"""The dashboard card: an anywidget whose state is a finished view, and whose script only draws."""

from __future__ import annotations

import atexit
import threading
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from remotegpu_notebooks import rendering
from remotegpu_notebooks.feed import Feed
from remotegpu_notebooks.formatting import Reading, View, utc_now, view
from remotegpu_notebooks.source import ServerSource

STATIC = Path(__file__).parent / "static"
FIRST_READING_S = 1.0
"""How long showing the card may wait for numbers; it appears without them after that."""


class Dashboard(anywidget.AnyWidget):
    """Quota and this environment's GPUs, live while the card is on the screen."""

    _esm = (STATIC / "dashboard.js").read_text(encoding="utf-8")
    _css = (STATIC / "dashboard.css").read_text(encoding="utf-8")
    view = traitlets.Dict().tag(sync=True)

    def __init__(self, feed: Feed) -> None:
        super().__init__(view=dict(view(Reading(), now=utc_now())))
        self._feed = feed
        self._arrived = threading.Event()
        self.on_msg(self._on_message)
        self._watcher = feed.watch(self._show)

    def _show(self, reading: Reading) -> None:
        self.view = dict(view(reading, now=utc_now()))
        self._arrived.set()

    def _on_message(self, _widget: object, content: object, _buffers: object) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "ping":
            self._feed.seen(self._watcher)
        elif kind == "gone":
            self._feed.unwatch(self._watcher)

    def close(self) -> None:
        """Stop updating and remove the card."""
        if hasattr(self, "_watcher"):
            self._feed.unwatch(self._watcher)
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        self._arrived.wait(FIRST_READING_S)
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle or {}
        data["text/plain"] = repr(self)
        data["text/html"] = self._repr_html_()
        return bundle or data

    def _repr_html_(self) -> str:
        """The last values as a table: what a saved notebook shows where there are no widgets."""
        return rendering.status_html(self._view)

    def __repr__(self) -> str:
        return rendering.status_text(self._view)

    @property
    def _view(self) -> View:
        return self.view  # type: ignore[no-any-return]


class Busy:
    """Whether a cell is running, by IPython's own events."""

    def __init__(self) -> None:
        self.now = False
        shell = get_ipython()
        if shell is not None:
            self.now = True  # whoever makes the first card is a running cell
            shell.events.register("pre_run_cell", self._begin)
            shell.events.register("post_run_cell", self._end)

    def __call__(self) -> bool:
        return self.now

    def _begin(self, *_event: object) -> None:
        self.now = True

    def _end(self, *_event: object) -> None:
        self.now = False


@cache
def _shared_feed() -> Feed:
    feed = Feed(ServerSource(), busy=Busy())
    atexit.register(feed.stop)
    return feed


def dashboard() -> Dashboard:
    """A live card with quota and this environment's GPUs. Needs no set-up inside an environment.

    It never raises because of the server: what is wrong stands in the card.
    """
    return Dashboard(_shared_feed())
