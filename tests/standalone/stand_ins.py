"""Small programs in place of the parts, and a way to wait for real processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from remotegpu_server.standalone.supervisor import Service


def until(what: str, holds: Callable[[], object], *, timeout_s: float = 20) -> None:
    """These tests watch real processes, so they wait on real time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.01)


def stand_in(
    name: str, program: str, *, ready: Callable[[], bool] = lambda: True, **options: float
) -> Service:
    return Service(name, (sys.executable, "-c", program), dict(os.environ), is_ready=ready, **options)  # type: ignore[arg-type]
