"""A real agent on a host that is lent, given back and wiped, and with a GPU that falls sick."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from agent_process import clean_up, get
from joined_host import JoinedHost, server_program, until

import remotegpu
from remotegpu_agent import processes
from remotegpu_server.testing import LiveServer

PASSWORD = "correct horse battery"


def _sign_in(live: LiveServer, username: str, password: str) -> remotegpu.Client:
    with remotegpu.Client(live.url, "") as anonymous:
        token = anonymous.auth.login(username=username, password=password)
    return remotegpu.Client(live.url, token.secret)


@pytest.fixture
def admin(live_server: LiveServer) -> Iterator[remotegpu.Client]:
    with _sign_in(live_server, "admin", live_server.admin_password) as client:
        yield client


@pytest.fixture
def host(live_server: LiveServer, admin: remotegpu.Client, tmp_path: Path) -> Iterator[JoinedHost]:
    command = server_program(tmp_path)
    admin.images.create(name="lab", reference="process/lab", runtime="process", command=command)
    options = ["--runtime", "process", "--simulate-gpus", "1xA100-80GB"]
    made = JoinedHost(live_server, admin, "one", tmp_path / "one", options)
    made.start(admin)
    yield made
    made.stop()
    clean_up(made.id, "process")


def test_nothing_of_the_former_tenant_is_left_when_a_host_is_given_back(
    live_server: LiveServer, admin: remotegpu.Client, host: JoinedHost
) -> None:
    for customer, username in (("physics", "ada"), ("biology", "eve")):
        admin.customers.create(name=customer)
        admin.users.create(username=username, password=PASSWORD, customer=customer)
    end = datetime.now(UTC) + timedelta(days=30)
    lent = admin.dedications.create(host="one", customer="physics", ends_at=end)
    with _sign_in(live_server, "ada", PASSWORD) as ada:
        made = ada.environments.create(name="work", image="lab", gpus=1, cpus=0.1, memory_bytes=2**28)
        running = ada.environments.wait_ready(made.id, timeout_s=60)
        assert get(running.address, "/write") == "written"
        (home,) = (host.state / "homes").iterdir()
        assert any(home.iterdir())
        admin.dedications.reclaim(lent.id, reason="the project is over", force=True)
        until(
            "the host is clean",
            lambda: admin.dedications.get(lent.id).status == "ended",
            timeout_s=120,
        )
        assert ada.environments.get(made.id).status == "stopped"
    assert list((host.state / "homes").iterdir()) == []
    assert not list(processes.marked(f"{host.id}/{made.id}/"))
    steps = admin.dedications.get(lent.id).steps
    assert [step.status for step in steps] == ["done"] * 4
    assert admin.hosts.get("one").ready


def test_sick_gpu_comes_back_only_after_a_check_that_passed(
    admin: remotegpu.Client, host: JoinedHost
) -> None:
    failures = host.state / "simulated-gpu-failures"
    failures.write_text("0 fatal XID 79: lost from the bus\n")

    def gpu() -> remotegpu.types.hosts.Gpu:
        return admin.gpus.list(host="one").items[0]

    until("the GPU is out", lambda: gpu().health == "unhealthy")
    admin.gpus.check(gpu().id)
    until("the check failed", lambda: "check failed" in (gpu().health_reason or ""))
    failures.unlink()
    admin.gpus.check(gpu().id)
    until("the GPU is back", lambda: gpu().health == "healthy")
    assert admin.hosts.get("one").health == "healthy"
