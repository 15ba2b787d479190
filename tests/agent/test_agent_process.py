"""How an agent behaves towards its server and its engine when these misbehave."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from agent_process import AgentProcess, docker, get
from scripted_server import CREDENTIAL, ScriptedServer


def test_agent_that_is_superseded_ends_with_3_and_touches_nothing(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    process_agent.start()
    server.desire(process_agent.workload())
    address = server.until_observed("env-1", "running").address
    server.fail("/heartbeat", (409, "epoch_stale"))
    assert process_agent.wait() == 3
    assert "epoch_stale" in process_agent.log
    assert get(address, "/") == "hello"


def test_two_agents_of_one_host_leave_one_and_the_workload(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    process_agent.start()
    server.desire(process_agent.workload())
    address = server.until_observed("env-1", "running").address
    second = AgentProcess(server, process_agent.state_dir, "process").start()
    assert process_agent.wait() == 3
    assert get(address, "/") == "hello"
    assert second.stop() == 0


@pytest.mark.parametrize(("status", "code"), [(401, "token_invalid"), (403, "forbidden")])
def test_agent_whose_credential_is_refused_ends_with_4_and_leaves_the_workload(
    process_agent: AgentProcess, server: ScriptedServer, status: int, code: str
) -> None:
    process_agent.start()
    server.desire(process_agent.workload())
    address = server.until_observed("env-1", "running").address
    server.fail("/heartbeat", (status, code))
    assert process_agent.wait() == 4
    assert "Enrol the host again" in process_agent.log
    assert get(address, "/") == "hello"


def test_report_is_sent_again_until_the_server_has_it(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    process_agent.start()
    server.fail("/observed", *[(503, "unavailable")] * 3)
    server.desire(process_agent.workload(command=["/bin/sh", "-c", "echo sorry; exit 5"]))
    exited = server.until_observed("env-1", "exited")
    assert (exited.exit_code, exited.log_tail) == (5, "sorry\n")


def test_report_that_the_server_calls_stale_is_dropped(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    process_agent.start()
    server.fail("/env-1/observed", *[(409, "generation_stale")] * 20)
    server.desire(process_agent.workload(), process_agent.workload("env-2"))
    server.until_observed("env-2", "running")
    assert not [it for it in server.observations if it.workload_id == "env-1"]


def test_agent_registers_once_the_server_is_there(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    server.fail("/sessions", (503, "unavailable"), (500, "server_error"))
    process_agent.start()
    assert "registration failed" in process_agent.log


def test_host_that_is_not_enrolled_is_told_what_to_do(tmp_path: Path) -> None:
    done = _agent("run", "--state-dir", str(tmp_path), "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "remotegpu-agent enroll" in done.stderr


def test_enrolment_keeps_the_credential_private_and_status_never_shows_it(
    server: ScriptedServer, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("rge_one_time\n")
    state = tmp_path / "state"
    done = _agent("enroll", "--url", server.url, "--token-file", str(token_file), "--state-dir", str(state))
    assert done.returncode == 0, done.stderr
    credential = state / "credential.json"
    assert credential.stat().st_mode & 0o777 == 0o600
    assert json.loads(credential.read_text())["secret"] == CREDENTIAL
    status = _agent("status", "--state-dir", str(state))
    assert status.returncode == 1
    assert json.loads(status.stdout)["alive"] is False
    assert CREDENTIAL not in done.stdout + done.stderr + status.stdout


def test_enrolment_with_a_used_token_says_so(server: ScriptedServer, tmp_path: Path) -> None:
    server.fail("/enroll", (410, "enrollment_token_used"))
    done = _agent("enroll", "--url", server.url, "--token", "x", "--state-dir", str(tmp_path))
    assert done.returncode == 1
    assert "Make a new one" in done.stderr


def test_running_agent_shows_its_state(process_agent: AgentProcess, server: ScriptedServer) -> None:
    process_agent.start()
    server.desire(process_agent.workload())
    server.until_observed("env-1", "running")
    before = len(server.heartbeats)
    server.until("two heartbeats later", lambda: len(server.heartbeats) > before + 1)
    done = _agent("status", "--state-dir", str(process_agent.state_dir))
    status = json.loads(done.stdout)
    assert done.returncode == 0
    assert (status["alive"], status["runtime"], status["epoch"]) == (True, "process", 1)
    assert status["workloads"][0]["observed"] == "running"


@pytest.mark.docker
def test_engine_that_is_down_at_the_start_makes_the_host_unhealthy_until_it_answers(
    docker_agent: AgentProcess, server: ScriptedServer, tmp_path: Path
) -> None:
    gate = EngineBehindGate(tmp_path / "engine.sock")
    docker_agent.options = ["--docker-host", f"unix://{gate.path}"]
    docker_agent.start()
    inventory = server.sessions[0].inventory
    assert inventory.runtime_healthy is False
    assert "systemctl start docker" in inventory.runtime_detail
    server.desire(docker_agent.workload())
    server.until("heartbeats go on", lambda: len(server.heartbeats) >= 3)
    assert not server.last_heartbeat.runtime_healthy
    gate.open()
    try:
        server.until_observed("env-1", "running", timeout_s=40)
        server.until("it is healthy again", lambda: server.last_heartbeat.runtime_healthy)
    finally:
        gate.close()


@pytest.mark.docker
def test_engine_that_goes_away_is_unknown_and_never_gone(
    docker_agent: AgentProcess, server: ScriptedServer, tmp_path: Path
) -> None:
    gate = EngineBehindGate(tmp_path / "engine.sock")
    gate.open()
    docker_agent.options = ["--docker-host", f"unix://{gate.path}"]
    docker_agent.start()
    server.desire(docker_agent.workload())
    address = server.until_observed("env-1", "running").address
    seen = len(server.observations)
    gate.close()
    server.until("the host says so", lambda: not server.last_heartbeat.runtime_healthy)
    assert server.last_heartbeat.observed[0].observed == "running"
    docker_agent.kill()
    docker_agent.start()
    registered = server.sessions[-1]
    assert registered.inventory.runtime_healthy is False
    assert [(it.workload_id, it.observed) for it in registered.workloads] == [("env-1", "unknown")]
    assert get(address, "/") == "hello"
    gate.open()
    try:
        server.until("it is healthy again", lambda: server.last_heartbeat.runtime_healthy)
        server.until_observed("env-1", "running", timeout_s=40)
    finally:
        gate.close()
    assert {str(it.observed) for it in server.observations[seen:]} <= {"running", "starting"}
    assert docker("inspect", "rgpu-env-1", "--format", "{{.State.Running}}") == "true"


class EngineBehindGate:
    """The real engine's socket behind one that a test can take away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._ends: list[socket.socket] = []

    def open(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        self._start(self._accept, self._listener)

    def close(self) -> None:
        if self._listener is not None:
            self.path.unlink(missing_ok=True)
            self._listener.shutdown(socket.SHUT_RDWR)
            self._threads[0].join()
            for end in self._ends:
                _shut(end)
            for thread in self._threads:
                thread.join()
            for end in [self._listener, *self._ends]:
                end.close()
            self._listener, self._threads, self._ends = None, [], []

    def _start(self, work: Callable[..., None], *args: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=args))
        self._threads[-1].start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect("/var/run/docker.sock")
            self._ends += [near, far]
            self._start(_carry, near, far)
            self._start(_carry, far, near)


def _carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        _shut(source)
    _shut(target)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):  # it was shut already
        end.shutdown(socket.SHUT_RDWR)


def _agent(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remotegpu_agent", *words],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
