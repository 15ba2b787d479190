"""What a running task says about how far it is."""

from __future__ import annotations

import os
import time

PROGRESS_FILE = "REMOTEGPU_PROGRESS_FILE"
EVERY_S = 0.5
"""The host looks once a second; more often than this is work for nothing."""
LONGEST = 512
"""Characters of a message."""

_written_at: float | None = None


def report_progress(fraction: float, message: str = "") -> None:
    """Say from inside a task how far it is: 0 to 1, and a few words. Outside of a task it does nothing.

    Cheap enough for every step of a loop: what comes within half a second of the last is left out, but never
    the end (1). A disk that is full does not fail the task. :raises ValueError: `fraction` is not in 0 to 1.
    """
    global _written_at
    if not 0 <= fraction <= 1:
        raise ValueError(f"progress goes from 0 to 1, not {fraction!r}")
    file = os.environ.get(PROGRESS_FILE)
    if not file:
        return
    now = time.monotonic()
    if _written_at is not None and now - _written_at < EVERY_S and fraction < 1:
        return
    _written_at = now
    _replace(file, f"{float(fraction):.6g} {' '.join(message.split())[:LONGEST]}".rstrip() + "\n")


def _replace(file: str, line: str) -> None:
    """Whoever reads sees the line before or this one, never a part."""
    beside = f"{file}.{os.getpid()}"
    try:
        with open(beside, "w", encoding="utf-8") as handle:
            handle.write(line)
        os.replace(beside, file)
    except OSError:
        return
