"""`up`, `status` and `down` with the real parts and the process runtime."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from standalone.stand_ins import until

pytestmark = [pytest.mark.hub, pytest.mark.timeout(300)]

PARTS = ("server", "agent", "proxy", "hub", "database")


@dataclass(frozen=True)
class Machine:
    """One data folder and its ports."""

    home: Path
    port: int

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("REMOTEGPU_")}
        environ |= {
            "REMOTEGPU_HOME": str(self.home),
            "REMOTEGPU_PORT": str(self.port),
            "REMOTEGPU_RUNTIME": "process",
            "REMOTEGPU_SIMULATE_GPUS": "2xA100-80GB",
        }
        return subprocess.run(
            [sys.executable, "-m", "remotegpu_server.standalone", *words],
            env=environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def up(self) -> str:
        done = self.run("up", "--detach")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        done = self.run("status")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def processes(self) -> dict[int, str]:
        """Everything that was started for this data folder, by its environment."""
        mark = f"REMOTEGPU_HOME={self.home}".encode()
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    def is_silent(self) -> bool:
        """Whether nothing listens on any of its ports."""
        for offset in range(4):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port + offset)) == 0:
                    return False
        return True


def free_ports() -> int:
    """The first of four free ports in a row."""
    for port in range(19100, 19900, 10):
        sockets = [socket.socket() for _ in range(4)]
        try:
            for offset, probe in enumerate(sockets):
                probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
        return port
    raise AssertionError("no four free ports in a row between 19100 and 19900")


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "home", free_ports())
    yield machine
    machine.run("down")
    assert machine.processes() == {}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A running installation, for tests that leave it running."""
    made = Machine(tmp_path_factory.mktemp("standalone") / "home", free_ports())
    made.up()
    yield made
    done = made.run("down")
    assert done.returncode == 0, done.stdout
    assert made.processes() == {}, "down left processes behind"
    assert made.is_silent()


def test_up_without_docker_ends_ready_and_status_says_how(machine: Machine) -> None:
    status = machine.status()
    assert status["problems"] == []
    assert status["ready"] is True
    assert status["urls"] == {
        "hub": f"http://127.0.0.1:{machine.port}",
        "server": f"http://127.0.0.1:{machine.port + 3}",
        "server_for_notebooks": f"http://127.0.0.1:{machine.port + 3}",
    }
    assert status["runtime"] == "process"
    assert "evaluation" in status["runtime_detail"]
    assert status["simulated"] is True
    assert status["admin"]["username"] == "admin"
    assert {"remotegpu", "python", "postgresql", "jupyterhub"} <= set(status["versions"])
    assert all(isinstance(status["processes"][name], int) for name in (*PARTS, "supervisor"))


def test_secrets_are_private_and_stand_nowhere_else(machine: Machine) -> None:
    secrets = {path: path.read_text().strip() for path in (machine.home / "secrets").iterdir()}
    assert {"admin-password", "hub-token", "proxy-token"} <= {path.name for path in secrets}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in secrets)
    seen = json.dumps(machine.status()) + " ".join(machine.processes().values())
    seen += "".join(path.read_text(errors="replace") for path in (machine.home / "logs").iterdir())
    assert [path.name for path, secret in secrets.items() if secret in seen] == []


def test_up_while_running_says_so(machine: Machine) -> None:
    before = machine.status()["processes"]
    assert f"http://127.0.0.1:{machine.port}" in machine.up()
    foreground = machine.run("up")
    assert foreground.returncode == 0
    assert "already running" in foreground.stdout
    assert machine.status()["processes"] == before


@pytest.mark.parametrize("part", PARTS)
def test_killed_part_is_back_by_itself(machine: Machine, part: str) -> None:
    killed = machine.status()["processes"][part]
    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        status = machine.status()
        return bool(status["ready"] and status["processes"][part] not in (None, killed))

    until(f"{part} is back", is_back, timeout_s=60)


def test_up_after_a_killed_supervisor_takes_over_and_keeps_the_data(machine: Machine) -> None:
    before = machine.status()["processes"]
    password = (machine.home / "secrets" / "admin-password").read_text()
    os.kill(before["supervisor"], signal.SIGKILL)
    until("the supervisor is gone", lambda: machine.status()["processes"]["supervisor"] is None)
    orphaned = machine.status()
    assert orphaned["ready"] is False
    assert {orphaned["processes"][part] for part in PARTS} == {before[part] for part in PARTS}

    assert "an earlier supervisor left behind" in machine.up()
    after = machine.status()
    assert after["ready"] is True
    assert after["processes"]["database"] == before["database"], "the database went on"
    assert all(after["processes"][part] != before[part] for part in PARTS if part != "database")
    assert (machine.home / "secrets" / "admin-password").read_text() == password


def test_down_after_a_killed_supervisor_leaves_nothing(stopped: Machine) -> None:
    stopped.up()
    os.kill(stopped.status()["processes"]["supervisor"], signal.SIGKILL)
    done = stopped.run("down")
    assert done.returncode == 0, done.stdout
    assert stopped.processes() == {}
    assert stopped.is_silent()
    assert stopped.run("down").stdout.strip() == "nothing runs here"


def test_taken_port_is_named_with_its_holder_and_the_way_out(stopped: Machine) -> None:
    with socket.create_server(("127.0.0.1", stopped.port + 2)):
        done = stopped.run("up")
    assert done.returncode == 1
    assert f"port {stopped.port + 2}" in done.stdout
    assert f"process {os.getpid()}" in done.stdout
    assert "REMOTEGPU_PORT=" in done.stdout
    assert stopped.processes() == {}


def test_unreachable_database_fails_in_words_and_leaves_nothing(stopped: Machine) -> None:
    url = "postgresql://somebody:hidden-word@127.0.0.1:1/nowhere"
    done = stopped.run("up", "--detach", REMOTEGPU_DATABASE_URL=url)
    assert done.returncode == 1
    assert "FAILED  database" in done.stdout
    assert "what to do" in done.stdout
    assert "hidden-word" not in done.stdout
    assert stopped.processes() == {}


def test_port_that_is_no_number_is_refused(stopped: Machine) -> None:
    done = stopped.run("up", REMOTEGPU_PORT="eight thousand")
    assert done.returncode == 1
    assert "REMOTEGPU_PORT is 'eight thousand'" in done.stdout


def test_interrupt_while_starting_stops_what_was_started(stopped: Machine) -> None:
    environ = {**os.environ, "REMOTEGPU_HOME": str(stopped.home), "REMOTEGPU_PORT": str(stopped.port)}
    up = subprocess.Popen(
        [sys.executable, "-m", "remotegpu_server.standalone", "up"],
        env=environ | {"REMOTEGPU_RUNTIME": "process"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert up.stdout is not None
    for line in up.stdout:
        if line.split()[:1] == ["database"]:
            up.send_signal(signal.SIGINT)
            break
    rest = up.communicate(timeout=60)[0]
    assert "stopped database" in rest
    assert stopped.processes() == {}
