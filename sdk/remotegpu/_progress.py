"""Shows how an environment gets on: a line in a terminal, a display in a notebook, nothing in a pipe."""

from __future__ import annotations

import html
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from remotegpu._tables import printable

if TYPE_CHECKING:
    from remotegpu.types.environments import Environment

Show = Callable[["Environment"], object]
Choice = bool | Show

BAR_WIDTH = 20
_SPINNER = "|/-\\"


@contextmanager
def display(choice: Choice) -> Iterator[Show]:
    """The function to call with every new look at the environment."""
    if callable(choice):
        yield choice
    elif not choice:
        yield _nothing
    elif _in_notebook():
        yield _Notebook()
    elif sys.stderr.isatty():
        line = _Line()
        try:
            yield line
        finally:
            line.end()
    else:
        yield _nothing


def _nothing(environment: Environment) -> None:
    return None


def describe(environment: Environment) -> str:
    """One line: status, how far, and the server's words."""
    if environment.progress_percent is not None:
        how_far = f" {_bar(environment.progress_percent)} {environment.progress_percent} %"
    elif environment.queue_position is not None:
        how_far = f" (number {environment.queue_position} in the queue)"
    else:
        how_far = ""
    words = f" {environment.message}" if environment.message else ""
    return printable(f"{environment.name}: {environment.status}{how_far}{words}")


def _bar(percent: int) -> str:
    full = round(BAR_WIDTH * max(0, min(percent, 100)) / 100)
    return "[" + "#" * full + "." * (BAR_WIDTH - full) + "]"


class _Line:
    """Rewrites one line on standard error."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._looks = 0

    def __call__(self, environment: Environment) -> None:
        spinner = _SPINNER[self._looks % len(_SPINNER)]
        self._looks += 1
        text = f"{spinner} {time.monotonic() - self._started:4.0f} s  {describe(environment)}"
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r\x1b[K" + text[:width])
        sys.stderr.flush()

    def end(self) -> None:
        if self._looks:
            sys.stderr.write("\n")
            sys.stderr.flush()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # never imported here: a program without it has no notebook
    if ipython is None:
        return False
    shell = ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


class _Notebook:
    """Updates one display of the running cell."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __call__(self, environment: Environment) -> None:
        text = describe(environment)
        bundle = {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
        if self._handle is None:
            self._handle = sys.modules["IPython"].display.display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
