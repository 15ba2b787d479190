"""The agent against the real server: enrol, run an environment, survive kills, free the GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import HOST_LABEL, docker, get, tell_to_exit
from agent_workloads import IMAGE, SERVER

import remotegpu
from remotegpu_server.testing import LiveServer


class JoinedAgent:
    """An agent that enrolled at a live server."""

    def __init__(self, live: LiveServer, admin: remotegpu.Client, runtime: str, state: Path) -> None:
        self.live, self.admin, self.runtime, self.state = live, admin, runtime, state
        self.process: subprocess.Popen[bytes] | None = None
        admin.hosts.create(name="gpu-host")
        state.mkdir()
        token = state / "token"
        token.write_text(admin.hosts.create_enrollment_token("gpu-host").secret)
        self.enrolled = self._run("enroll", "--token-file", str(token))
        self.again = self._run("enroll", "--token-file", str(token))

    def start(self) -> None:
        with (self.state / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "remotegpu_agent", "run", "--state-dir", str(self.state),
                 "--runtime", self.runtime, "--simulate-gpus", "1xA100-80GB"],
                stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "remotegpu_agent", *words, "--url", self.live.url,
             "--state-dir", str(self.state)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip


@pytest.fixture
def admin(live_server: LiveServer) -> Iterator[remotegpu.Client]:
    with remotegpu.Client(live_server.url, "") as anonymous:
        token = anonymous.auth.login(username="admin", password=live_server.admin_password)
    with remotegpu.Client(live_server.url, token.secret) as client:
        yield client


@pytest.fixture
def joined(
    live_server: LiveServer, admin: remotegpu.Client, runtime: str, tmp_path: Path
) -> Iterator[JoinedAgent]:
    agent = JoinedAgent(live_server, admin, runtime, tmp_path / "state")
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.process.terminate()
        agent.process.wait(20)
    log = agent.state / "agent.log"
    print(log.read_text() if log.exists() else "")


def until(what: str, probe: Any, *, timeout_s: float = 40) -> Any:
    """Real processes: nothing but asking tells."""
    deadline = time.monotonic() + timeout_s
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
    return answer


def _run_one(joined: JoinedAgent, admin: remotegpu.Client) -> Any:
    """The host is ready and one environment with its GPU runs on it."""
    joined.start()
    until("the host is ready", lambda: admin.hosts.get("gpu-host").ready)
    if joined.runtime == "docker":
        admin.images.create(name="lab", reference=IMAGE)
    else:
        program = joined.state / "server.py"
        own_url = "'http://127.0.0.1:' + os.environ['REMOTEGPU_PROCESS_PORT']"
        program.write_text(SERVER.replace('os.environ["JUPYTERHUB_SERVICE_URL"]', own_url))
        command = [sys.executable, str(program)]
        admin.images.create(name="lab", reference="process/lab", runtime="process", command=command)
    made = admin.environments.create(name="default", image="lab", gpus=1, memory_bytes=2**28)
    return admin.environments.wait_ready(made.id, timeout_s=60)


def test_environment_runs_survives_kills_and_frees_its_gpu(
    joined: JoinedAgent, admin: remotegpu.Client, live_server: LiveServer
) -> None:
    assert joined.enrolled.returncode == 0, joined.enrolled.stderr
    assert joined.again.returncode == 1, "an enrolment token works once"
    environment = _run_one(joined, admin)
    assert get(environment.address, "/") == "hello"
    assert environment.allocated_gpus[0].simulated
    assert get(environment.address, "/env/REMOTEGPU_SIMULATED_GPUS") == environment.allocated_gpus[0].uuid

    joined.kill()
    live_server.kill()
    assert get(environment.address, "/") == "hello"
    live_server.start()
    joined.start()
    until("the new agent registered", lambda: "epoch 2" in (joined.state / "agent.log").read_text())
    after = until("it runs", lambda: _in_status(admin, environment.id, "running"))
    assert (after.generation, after.address) == (environment.generation, environment.address)
    logs = admin.environments.logs(environment.id)
    assert "listening" in logs.text
    assert logs.live

    admin.environments.stop(environment.id)
    admin.environments.wait_stopped(environment.id, timeout_s=60)
    assert all(gpu.free for gpu in admin.gpus.list())
    if joined.runtime == "docker":
        host_id = admin.hosts.get("gpu-host").id
        assert docker("ps", "-aq", "--filter", f"label={HOST_LABEL}={host_id}") == ""
        assert docker("network", "ls", "-q", "--filter", f"label={HOST_LABEL}={host_id}") == ""


def test_workload_that_ended_while_no_agent_ran_fails_with_code_and_output_and_frees_its_gpu(
    joined: JoinedAgent, admin: remotegpu.Client
) -> None:
    environment = _run_one(joined, admin)
    joined.kill()
    tell_to_exit(environment.address, 3)
    joined.start()
    failed = until("it failed", lambda: _in_status(admin, environment.id, "failed"))
    assert (failed.reason, failed.exit_code) == ("exited", 3)
    assert "told to exit with 3" in (failed.log_tail or "")
    until("its GPU is free", lambda: all(gpu.free for gpu in admin.gpus.list()))


def test_workload_that_ends_by_itself_fails_within_a_heartbeat_and_frees_its_gpu(
    joined: JoinedAgent, admin: remotegpu.Client
) -> None:
    environment = _run_one(joined, admin)
    tell_to_exit(environment.address, 3)
    failed = until("it failed", lambda: _in_status(admin, environment.id, "failed"), timeout_s=10)
    assert (failed.reason, failed.exit_code) == ("exited", 3)
    assert "told to exit with 3" in (failed.log_tail or "")
    until("its GPU is free", lambda: all(gpu.free for gpu in admin.gpus.list()), timeout_s=10)


@pytest.mark.parametrize("runtime", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
def test_container_removed_by_hand_fails_its_environment_and_frees_its_gpu(
    joined: JoinedAgent, admin: remotegpu.Client
) -> None:
    environment = _run_one(joined, admin)
    host_id = admin.hosts.get("gpu-host").id
    docker("rm", "-f", docker("ps", "-aq", "--filter", f"label={HOST_LABEL}={host_id}"))
    failed = until("it failed", lambda: _in_status(admin, environment.id, "failed"), timeout_s=10)
    assert failed.reason == "workload_vanished"
    until("its GPU is free", lambda: all(gpu.free for gpu in admin.gpus.list()), timeout_s=10)
    assert docker("network", "ls", "-q", "--filter", f"label={HOST_LABEL}={host_id}") == ""


def _in_status(admin: remotegpu.Client, environment_id: str, status: str) -> Any:
    environment = admin.environments.get(environment_id)
    return environment if environment.status == status else None
