"""An agent process that enrolled at a live server, under a name of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agent_workloads import SERVER

import remotegpu
from remotegpu_server.testing import LiveServer

T = TypeVar("T")


def until(what: str, probe: Callable[[], T], *, timeout_s: float = 40) -> T:
    """Real processes: nothing but asking tells."""
    deadline = time.monotonic() + timeout_s
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
    return answer


class JoinedHost:
    """One of several hosts: ``options`` are those of ``remotegpu-agent run``."""

    def __init__(
        self, live: LiveServer, admin: remotegpu.Client, name: str, state: Path, options: list[str]
    ) -> None:
        self.name, self.state, self._options = name, state, options
        self.id = admin.hosts.create(name=name).id
        state.mkdir()
        token = state / "token"
        token.write_text(admin.hosts.create_enrollment_token(name).secret)
        subprocess.run(
            [sys.executable, "-m", "remotegpu_agent", "enroll", "--url", live.url,
             "--state-dir", str(state), "--token-file", str(token)],
            capture_output=True, timeout=30, check=True,
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start it first"
        return self._process.pid

    def start(self, admin: remotegpu.Client) -> None:
        with (self.state / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "remotegpu_agent", "run", "--state-dir", str(self.state),
                 *self._options],
                stdout=log, stderr=log,
            )  # fmt: skip
        until(f"{self.name} is ready", lambda: admin.hosts.get(self.name).ready)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            print((self.state / "agent.log").read_text())


def server_program(folder: Path) -> list[str]:
    """The command of a web server for hosts that run processes; ``/write`` and ``/read`` keep a file."""
    program = folder / "server.py"
    own_url = "'http://127.0.0.1:' + os.environ['REMOTEGPU_PROCESS_PORT']"
    program.write_text(SERVER.replace('os.environ["JUPYTERHUB_SERVICE_URL"]', own_url))
    return [sys.executable, str(program)]
