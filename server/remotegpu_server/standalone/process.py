"""Processes that are found again: a process id alone may be somebody else's tomorrow."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """A process id together with when that process began."""

    pid: int
    started: str
    """Boot id and clock ticks since boot."""

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has this id now; None if there is none, or only its remains."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if fields[0] in (b"Z", b"X"):
            return None
        return cls(pid=pid, started=f"{_BOOT_ID.read_text().strip()}:{fields[19].decode()}")

    @property
    def alive(self) -> bool:
        return Identity.of(self.pid) == self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def await_end(self, timeout_s: float) -> bool:
        """Whether it ended within the time."""
        deadline = time.monotonic() + timeout_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def stop(self, patience_s: float) -> None:
        """Ask it to end; after `patience_s`, kill it, with all its group where it leads one."""
        self.signal(signal.SIGTERM)
        if self.await_end(patience_s):
            return
        if self.alive and os.getpgid(self.pid) == self.pid:
            end_group(self.pid)
        self.signal(signal.SIGKILL)
        self.await_end(5)


def end_group(leader: int) -> None:
    """Kill a session that `start_detached` began: the leader, dead or alive, and what it started."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def start_detached(
    argv: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with its output appended to `log` (mode 0600)."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
