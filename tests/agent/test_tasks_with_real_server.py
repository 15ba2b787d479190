"""Tasks on a real agent, with the real server: submitted by the API, run, told, released."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import HOST_LABEL, docker
from joined_host import JoinedHost, until
from task_specs import TASK_IMAGE

import remotegpu
from remotegpu_server.testing import LiveServer


@pytest.fixture
def admin(live_server: LiveServer) -> Iterator[remotegpu.Client]:
    with remotegpu.Client(live_server.url, "") as anonymous:
        token = anonymous.auth.login(username="admin", password=live_server.admin_password)
    with remotegpu.Client(live_server.url, token.secret) as client:
        yield client


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def host(
    request: pytest.FixtureRequest, live_server: LiveServer, admin: remotegpu.Client, tmp_path: Path
) -> Iterator[JoinedHost]:
    if request.param == "docker":
        request.getfixturevalue("task_image")
        admin.images.create(name="shell", reference=TASK_IMAGE)
    else:
        admin.images.create(name="shell", reference="process/sh", runtime="process", command=["sh"])
    options = ["--runtime", request.param, "--simulate-gpus", "1xA100-80GB"]
    joined = JoinedHost(live_server, admin, "gpu-host", tmp_path / "state", options)
    joined.start(admin)
    yield joined
    joined.stop()


def ended(admin: remotegpu.Client, task_id: str) -> Any:
    def probe() -> Any:
        task = admin.tasks.get(task_id)
        return task if task.finished_at is not None else None

    return until("the task has ended", probe)


def submit(admin: remotegpu.Client, script: str, **more: Any) -> str:
    fields = {"image": "shell", "command": ["sh", "-c", script], "gpus": 1, "memory_bytes": 2**27} | more
    return str(admin.tasks.submit(**fields).tasks[0].id)


def test_task_runs_on_its_gpu_and_frees_it(host: JoinedHost, admin: remotegpu.Client) -> None:
    task = ended(admin, submit(admin, "echo hello; exit 3"))
    assert (task.status, task.reason, task.exit_code) == ("failed", "exit_code", 3)
    assert admin.tasks.logs(task.id).text == "hello\n"
    until("its GPU is free", lambda: all(gpu.free for gpu in admin.gpus.list()))
    missing = ended(admin, submit(admin, "true", command=["no-such-program"]))
    assert (missing.status, missing.reason, missing.exit_code) == ("failed", "command_not_found", 127)
    assert "no-such-program was not found" in missing.message


def test_stop_and_timeout_end_it(host: JoinedHost, admin: remotegpu.Client) -> None:
    stopped = submit(admin, "trap '' TERM; while :; do sleep 0.1; done", stop_grace_s=0.5)
    until("it runs", lambda: admin.tasks.get(stopped).status == "running")
    admin.tasks.stop(stopped)
    assert ended(admin, stopped).status == "cancelled"
    late = ended(admin, submit(admin, "sleep 600", timeout_s=1, stop_grace_s=0.5))
    assert (late.status, late.reason) == ("timed_out", "timeout")
    until("its GPU is free", lambda: all(gpu.free for gpu in admin.gpus.list()))


def test_kills_of_agent_and_server_lose_nothing_and_run_nothing_twice(
    host: JoinedHost, admin: remotegpu.Client, live_server: LiveServer
) -> None:
    task_id = submit(admin, "echo begun >>~/begun; sleep 3; exit 4")
    until("it runs", lambda: admin.tasks.get(task_id).status == "running")
    host.kill()
    live_server.kill()
    time.sleep(0.5)
    live_server.start()
    host.start(admin)
    task = ended(admin, task_id)
    assert (task.status, task.exit_code, task.attempt) == ("failed", 4, 1)
    begun = list((host.state / "homes").glob("*/begun"))
    assert [path.read_text() for path in begun] == ["begun\n"]
    until("its GPU is free", lambda: all(gpu.free for gpu in admin.gpus.list()))
    assert docker("ps", "-aq", "--filter", f"label={HOST_LABEL}={host.id}", check=False) == ""
