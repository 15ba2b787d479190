"""Keeps the guard alive: a process of its own that ends attempts whose agent cannot."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("guard.py")
DOCKER_SOCKET = "unix:///var/run/docker.sock"
LOCK = "guard.lock"
"""Held by the guard while it lives."""


class Guard:
    """The guard of one state directory; it outlives this agent."""

    def __init__(self, state_dir: Path, *, engine: str | None) -> None:
        """``engine``: address of Docker; left out, what ``DOCKER_HOST`` says or the usual socket."""
        self._state_dir = state_dir
        self._engine = (engine or os.environ.get("DOCKER_HOST") or DOCKER_SOCKET).partition("://")[2]
        self._child: subprocess.Popen[bytes] | None = None
        self._trouble: str | None = None

    def ensure(self) -> None:
        """Start it unless one holds the lock. What hinders that is said once, and tried again."""
        if self._child is not None and self._child.poll() is None:
            return
        try:
            if self._locked():
                return
            with (self._state_dir / "guard.log").open("ab") as output:
                self._child = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(PROGRAM), str(self._state_dir), self._engine],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={},
                    start_new_session=True,
                )
            self._trouble = None
        except OSError as error:
            if str(error) != self._trouble:
                log.error("the guard does not start: %s", error)
            self._trouble = str(error)

    def leave(self) -> None:
        """It goes on; without a code Popen would warn that it still runs."""
        if self._child is not None and self._child.poll() is None:
            self._child.returncode = 0

    def _locked(self) -> bool:
        handle = os.open(self._state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False
