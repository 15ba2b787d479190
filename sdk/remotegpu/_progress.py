"""Shows how something gets on: a line in a terminal, a display in a notebook, nothing in a pipe."""

from __future__ import annotations

import html
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from remotegpu._tables import printable

if TYPE_CHECKING:
    from remotegpu.types.environments import Environment
    from remotegpu.types.hosts import Host
    from remotegpu.types.queue import Wait
    from remotegpu.types.tasks import ArtifactDownload, Task, TaskInput
    from remotegpu.types.wire import Wire

ShownT = TypeVar("ShownT", bound="Wire")
Show = Callable[[ShownT], object]
Choice = bool | Callable[[ShownT], object]

BAR_WIDTH = 20
_SPINNER = "|/-\\"


@contextmanager
def display(choice: Choice[ShownT]) -> Iterator[Show[ShownT]]:
    """The function to call with every new look."""
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


def _nothing(item: Wire) -> None:
    return None


def describe(item: Wire) -> str:
    """One line: its state, how far it is, and the server's words."""
    return printable(_LINES[type(item).__name__](item))


def _environment(environment: Environment) -> str:
    if environment.progress_percent is not None:
        how_far = f" {_bar(environment.progress_percent)} {environment.progress_percent} %"
    elif environment.queue_position is not None:
        how_far = f" (number {environment.queue_position} in the queue{_likely(environment.wait)})"
    else:
        how_far = ""
    words = f" {environment.message}" if environment.message else ""
    return f"{environment.name}: {environment.status}{how_far}{words}"


def _host(host: Host) -> str:
    words = f" {host.not_ready_reason}" if host.not_ready_reason else ""
    return f"{host.name}: {'ready' if host.ready else host.connection}{words}"


def _task(task: Task) -> str:
    if task.progress is not None and task.status == "running":
        percent = round(100 * task.progress)
        how_far = f" {_bar(percent)} {percent} %"
    elif task.queue_position is not None:
        how_far = f" (number {task.queue_position} in the queue{_likely(task.wait)})"
    else:
        how_far = ""
    words = task.progress_message if task.status == "running" else task.message
    return f"{task.name}: {task.status}{how_far}" + (f" {words}" if words else "")


def _download(download: ArtifactDownload) -> str:
    percent = 100 * download.received_bytes // max(1, download.size_bytes)
    return f"{download.path}: {_bar(percent)} {percent} % of {download.size_bytes / 2**20:.1f} MiB"


def _upload(upload: TaskInput) -> str:
    percent = 100 * upload.received_bytes // max(1, upload.size_bytes)
    return f"sending: {_bar(percent)} {percent} % of {upload.size_bytes / 2**20:.1f} MiB"


_LINES: dict[str, Callable[[Any], str]] = {
    "ArtifactDownload": _download,
    "Environment": _environment,
    "Host": _host,
    "Task": _task,
    "TaskInput": _upload,
}


def _likely(wait: Wait | None) -> str:
    if wait is None or wait.estimate is None:
        return ""
    return f", likely to start {clock_range(wait)}"


def clock_range(wait: Wait) -> str:
    """The estimate on this machine's clock: ``14:05 to 15:20``; empty when there is none."""
    if wait.estimate is None:
        return ""
    first, last = wait.estimate.p50_at.astimezone(), wait.estimate.p90_at.astimezone()
    now = datetime.now(UTC).astimezone()
    clock = "%H:%M" if last.date() == now.date() else "%a %d %b %H:%M"
    early, late = f"{first:{clock}}", f"{last:{clock}}"
    return f"about {early}" if early == late else f"{early} to {late}"


def wait_lines(wait: Wait) -> list[str]:
    """Who is ahead, why there is no estimate, and what would start it now."""
    lines = [printable(line) for line in wait.ahead]
    if wait.estimate_note is not None:
        lines.append(f"No estimate: {printable(wait.estimate_note)}")
    return lines + [printable(offer.message) for offer in wait.counter_offers]


def _bar(percent: int) -> str:
    full = round(BAR_WIDTH * max(0, min(percent, 100)) / 100)
    return "[" + "#" * full + "." * (BAR_WIDTH - full) + "]"


class _Line:
    """Rewrites one line on standard error."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._looks = 0

    def __call__(self, item: Wire) -> None:
        spinner = _SPINNER[self._looks % len(_SPINNER)]
        self._looks += 1
        text = f"{spinner} {time.monotonic() - self._started:4.0f} s  {describe(item)}"
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

    def __call__(self, item: Wire) -> None:
        text = describe(item)
        bundle = {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
        if self._handle is None:
            self._handle = sys.modules["IPython"].display.display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
