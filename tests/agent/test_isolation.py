"""What a container can reach: nothing of this machine but the endpoints it was told to use."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from agent_process import HOST_LABEL, AgentProcess, docker, get
from agent_workloads import absent
from scripted_server import ScriptedServer

pytestmark = pytest.mark.docker


@pytest.fixture
def listener() -> Iterator[int]:
    """A port on all addresses of this machine, as a database would have."""
    with socket.create_server(("0.0.0.0", 0)) as server:  # noqa: S104 - the point is that it is reachable
        thread = threading.Thread(target=_accept, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1]


def _accept(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def _inspect(name: str) -> dict[str, object]:
    found: list[dict[str, object]] = json.loads(docker("inspect", name))
    return found[0]


def _address_inside(name: str) -> str:
    return docker("inspect", name, "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")


def _gateway_of(name: str) -> str:
    return docker("inspect", name, "--format", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}")


def test_container_reaches_neither_host_nor_engine_nor_other_containers(
    docker_agent: AgentProcess, server: ScriptedServer, listener: int
) -> None:
    if os.geteuid() != 0:
        pytest.skip("firewall rules need root")
    with socket.create_server(("0.0.0.0", 0)) as told:  # noqa: S104
        threading.Thread(target=_accept, args=(told,), daemon=True).start()
        bridge = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}")
        docker0 = bridge.replace("0.0/16", "0.1")
        told_port = told.getsockname()[1]
        url = f"http://{docker0}:{told_port}"
        docker_agent.start()
        assert docker_agent.server.sessions[0].inventory.runtime_detail.startswith("Docker")
        assert "can reach this host" not in docker_agent.server.sessions[0].inventory.runtime_detail
        a = docker_agent.workload("env-a", env={"REMOTEGPU_URL": url})
        b = docker_agent.workload("env-b")
        server.desire(a, b)
        from_a = server.until("a runs", lambda: _address_of(server, "env-a"))
        from_b = server.until("b runs", lambda: _address_of(server, "env-b"))

        gateway = _gateway_of("rgpu-env-a")
        assert get(from_a, f"/connect/{gateway}/{listener}") == "silent", "a port of the host"
        assert get(from_a, f"/connect/{docker0}/{listener}") == "silent", "the same by another address"
        assert get(from_a, f"/connect/{docker0}/{told_port}") == "connected", "what it was told to use"
        assert get(from_b, f"/connect/{docker0}/{told_port}") == "silent", "what another was told to use"
        assert get(from_a, f"/connect/{_address_inside('rgpu-env-b')}/8888") == "silent", "its neighbour"
        published = int(from_b.rsplit(":", 1)[1])
        assert get(from_a, f"/connect/{gateway}/{published}") in ("silent", "refused"), "its published port"
        assert get(from_a, "/connect/169.254.169.254/80") == "silent", "the metadata service"
        assert get(from_a, "/exists/var/run/docker.sock") == "no"
        server.desire(absent(a), absent(b))
        server.until("both are gone", lambda: _gone(server, "env-a") and _gone(server, "env-b"))
    rules = subprocess.run(["iptables", "-S"], capture_output=True, text=True, check=True).stdout
    assert str(told_port) not in rules, "the rule of a removed container stays"


def _address_of(server: ScriptedServer, workload_id: str) -> str | None:
    seen = [it.address for it in server.observations if it.workload_id == workload_id and it.address]
    return seen[-1] if seen else None


def _gone(server: ScriptedServer, workload_id: str) -> bool:
    return any(it.workload_id == workload_id and it.observed == "absent" for it in server.observations)


def test_container_is_made_by_the_rules_and_its_secrets_stay_in_its_environment(
    docker_agent: AgentProcess, server: ScriptedServer
) -> None:
    docker_agent.start()
    server.desire(docker_agent.workload(secret_env={"JUPYTERHUB_API_TOKEN": "canary-secret"}))
    address = server.until_observed("env-1", "running").address
    assert get(address, "/id") == "1000:1000", "an image that names no user does not run as root"
    assert get(address, "/env/JUPYTERHUB_API_TOKEN") == "canary-secret"
    details = _inspect("rgpu-env-1")
    host = details["HostConfig"]
    assert isinstance(host, dict)
    assert host["CapDrop"] == ["ALL"]
    assert host["Privileged"] is False
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["PidsLimit"], host["Memory"], host["MemorySwap"]) == (1024, 2**27, 2**27)
    assert (host["PidMode"], host["UTSMode"], host["IpcMode"]) == ("", "", "private")
    config = details["Config"]
    assert isinstance(config, dict)
    variables = config.pop("Env")
    assert "JUPYTERHUB_API_TOKEN=canary-secret" in variables
    assert "canary-secret" not in json.dumps(details), (
        "in its environment, and nowhere else that Docker shows"
    )
    assert config["Labels"][HOST_LABEL] == server.host_id
    assert "canary-secret" not in docker_agent.log
    home = docker_agent.state_dir / "homes" / "vol-env-1"
    assert (home.stat().st_uid, home.stat().st_mode & 0o777) == (1000, 0o700)
    for file in docker_agent.state_dir.rglob("*"):
        if file.is_file() and "homes" not in file.parts:
            assert b"canary-secret" not in file.read_bytes(), file


def test_container_that_eats_its_memory_is_reported_as_out_of_memory(
    docker_agent: AgentProcess, server: ScriptedServer
) -> None:
    docker_agent.start()
    server.desire(docker_agent.workload(memory_bytes=32 * 2**20))
    address = server.until_observed("env-1", "running").address
    with pytest.raises(OSError):
        get(address, "/eat")
    exited = server.until_observed("env-1", "exited")
    assert exited.reason == "out_of_memory"
    assert exited.exit_code == 137


def test_image_that_nobody_has_fails_with_a_plain_message(
    docker_agent: AgentProcess, server: ScriptedServer
) -> None:
    docker_agent.start()
    missing = docker_agent.workload(image_reference="127.0.0.1:9/no/such:1")
    server.desire(missing)
    failed = server.until_observed("env-1", "failed", timeout_s=40)
    assert failed.reason == "image_pull_failed"
    assert "127.0.0.1:9/no/such:1 cannot be reached" in failed.message
    assert docker("network", "ls", "-q", "--filter", f"label={HOST_LABEL}={server.host_id}") == ""


def test_container_removed_behind_the_agents_back_is_reported_not_started_again(
    docker_agent: AgentProcess, server: ScriptedServer
) -> None:
    docker_agent.start()
    server.desire(docker_agent.workload())
    server.until_observed("env-1", "running")
    docker("rm", "-f", "rgpu-env-1")
    failed = server.until_observed("env-1", "failed")
    assert failed.reason == "workload_vanished"
    assert docker("ps", "-aq", "--filter", f"label={HOST_LABEL}={server.host_id}") == ""


def test_container_started_at_survives_agent_kills(
    docker_agent: AgentProcess, server: ScriptedServer
) -> None:
    docker_agent.start()
    server.desire(docker_agent.workload())
    server.until_observed("env-1", "running")
    started = docker("inspect", "rgpu-env-1", "--format", "{{.State.StartedAt}}")
    for _ in range(3):
        docker_agent.kill()
        docker_agent.start()
    assert docker("inspect", "rgpu-env-1", "--format", "{{.State.StartedAt}}") == started
