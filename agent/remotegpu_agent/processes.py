"""Processes of this machine, told apart safely: by start time, session, and a marker in their environment."""

from __future__ import annotations

import os
import signal
from pathlib import Path

MARKER = "REMOTEGPU_PROCESS_MARKER"
"""Variable that every process of a workload inherits: ``<host id>/<workload id>/``."""

_STATE, _SESSION, _START_TICKS = 0, 3, 19
"""Positions in ``/proc/<pid>/stat`` after the command name."""


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a program's name may be any bytes
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[_STATE] in ("Z", "X") else fields


def start_ticks(pid: int) -> int | None:
    """When it started, in clock ticks since boot; ``None`` when it is gone or only waits to be reaped."""
    fields = _stat(pid)
    return int(fields[_START_TICKS]) if fields is not None else None


def environment_of(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if item)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def marker_of(pid: int) -> str | None:
    return environment_of(pid).get(MARKER)


def marked(marker: str, *, session: int | None = None) -> list[int]:
    """Live processes with this marker, or in this session."""
    wanted = f"{MARKER}={marker}\0".encode()
    found: list[int] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or (fields := _stat(int(name))) is None:
            continue
        if session is not None and int(fields[_SESSION]) == session:
            found.append(int(name))
            continue
        try:
            if wanted in Path(f"/proc/{name}/environ").read_bytes():
                found.append(int(name))
        except OSError:  # it ended, or belongs to somebody else
            continue
    return found


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def signal_group(leader: int, number: signal.Signals) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return
