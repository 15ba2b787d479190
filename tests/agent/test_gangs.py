"""A task on three hosts, on real agents with the real server: ranks meet over TCP; one failure ends all."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import HOST_LABEL, docker, docker_answers
from joined_host import JoinedHost, until

import remotegpu
from remotegpu_server.testing import LiveServer

MEET = """
import json, os, socket, sys, time
env, rank = os.environ, int(os.environ["RANK"])
place = (env["MASTER_ADDR"], int(env["MASTER_PORT"]))
if rank == 0:
    with socket.create_server(("", place[1])) as listening:
        others = [listening.accept()[0] for _ in range(int(env["WORLD_SIZE"]) - 1)]
    told = sorted([json.loads(one.makefile().readline()) for one in others], key=lambda one: one["RANK"])
    for one in others:
        one.sendall(b"all here\\n")
    print(json.dumps(told))
else:
    deadline = time.monotonic() + 30
    while True:
        try:
            peer = socket.create_connection(place, timeout=30)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    names = ("RANK", "NODE_RANK", "NNODES", "PET_NNODES", "PET_NODE_RANK", "PET_MASTER_PORT", "MASTER_PORT")
    peer.sendall(json.dumps({name: env[name] for name in names}).encode() + b"\\n")
    print(peer.makefile().readline(), end="", flush=True)
if "fail" in sys.argv:
    if rank == 1:
        sys.exit(7)
    time.sleep(600)
"""


@pytest.fixture
def admin(live_server: LiveServer) -> Iterator[remotegpu.Client]:
    with remotegpu.Client(live_server.url, "") as anonymous:
        token = anonymous.auth.login(username="admin", password=live_server.admin_password)
    with remotegpu.Client(live_server.url, token.secret) as client:
        yield client


@pytest.fixture
def hosts(live_server: LiveServer, admin: remotegpu.Client, tmp_path: Path) -> Iterator[list[JoinedHost]]:
    admin.images.create(name="python", reference="process/python", runtime="process", command=["sh"])
    options = ["--runtime", "process", "--simulate-gpus", "1xA100-80GB"]
    made = [
        JoinedHost(live_server, admin, f"host-{number}", tmp_path / f"state-{number}", options)
        for number in range(3)
    ]
    for one in made:
        one.start(admin)
    yield made
    for one in made:
        one.stop()


@pytest.fixture
def docker_hosts(
    live_server: LiveServer, admin: remotegpu.Client, tmp_path: Path
) -> Iterator[list[JoinedHost]]:
    """All at one address of this machine, as hosts of their own would have one each."""
    if not docker_answers() or shutil.which("gcc") is None or os.geteuid() != 0:
        pytest.skip("needs a Docker engine, gcc, and root for the firewall's rules")
    program, archive = tmp_path / "meeting", tmp_path / "image.tar"
    subprocess.run(["gcc", "-O1", "-static", "-o", program, Path(__file__).parent / "meeting.c"], check=True)
    (tmp_path / "home" / "jovyan").mkdir(parents=True)
    subprocess.run(["tar", "-C", tmp_path, "-cf", archive, "meeting", "home"], check=True)
    image = f"remotegpu-gang-test:{uuid.uuid4().hex[:12]}"
    docker("import", str(archive), image)
    admin.images.create(name="meeting", reference=image)
    bridge = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}")
    gateway = str(next(ipaddress.ip_network(bridge).hosts()))
    options = ["--runtime", "docker", "--simulate-gpus", "1xA100-80GB", "--address", gateway]
    made = [
        JoinedHost(live_server, admin, f"host-{number}", tmp_path / f"state-{number}", options)
        for number in range(3)
    ]
    for one in made:
        one.start(admin)
    yield made
    for one in made:
        one.stop()
        for left in docker("ps", "-aq", "--filter", f"label={HOST_LABEL}={one.id}").split():
            docker("rm", "-f", left)
    docker("image", "rm", "-f", image, check=False)


def submit(admin: remotegpu.Client, *arguments: str, **more: Any) -> str:
    command = [sys.executable, "-c", MEET, *arguments]
    fields = {"image": "python", "command": command, "nodes": 3, "gpus": 1, "memory_bytes": 2**27}
    return str(admin.tasks.submit(**fields | {"stop_grace_s": 0.5} | more).tasks[0].id)


def ended(admin: remotegpu.Client, task_id: str) -> Any:
    def probe() -> Any:
        task = admin.tasks.get(task_id)
        return task if task.finished_at is not None else None

    return until("the task has ended", probe)


def test_ranks_meet_and_one_failure_ends_all(hosts: list[JoinedHost], admin: remotegpu.Client) -> None:
    task = ended(admin, submit(admin))
    assert (task.status, task.exit_code) == ("succeeded", 0), task.message
    told = json.loads(admin.tasks.logs(task.id).text)
    assert [(one["RANK"], one["NODE_RANK"], one["PET_NODE_RANK"]) for one in told] == [
        ("1", "1", "1"), ("2", "2", "2"),
    ]  # fmt: skip
    assert {(one["NNODES"], one["PET_NNODES"]) for one in told} == {("3", "3")}
    assert len({port for one in told for port in (one["MASTER_PORT"], one["PET_MASTER_PORT"])}) == 1
    assert "".join(admin.tasks.follow_logs(task.id, rank=2)) == "all here\n"
    assert len({one.host_name for one in admin.tasks.attempts(task.id)}) == 3
    failed = ended(admin, submit(admin, "fail"))
    assert (failed.status, failed.reason, failed.exit_code) == ("failed", "exit_code", 7)
    assert failed.message.startswith("Rank 1 on host-")
    by_rank = {one.rank: one for one in admin.tasks.attempts(failed.id)}
    assert [by_rank[rank].status for rank in range(3)] == ["cancelled", "failed", "cancelled"]
    assert [by_rank[rank].reason for rank in (0, 2)] == ["gang_failed", "gang_failed"]
    until("all GPUs are free", lambda: all(gpu.free for gpu in admin.gpus.list()))


def test_agent_that_dies_before_it_is_ready_holds_the_others_and_goes_on(
    hosts: list[JoinedHost], admin: remotegpu.Client, live_server: LiveServer
) -> None:
    hosts[1].kill()
    task_id = submit(admin)
    until("one waits", lambda: any(one.claimed_at for one in admin.tasks.attempts(task_id)))
    live_server.kill()
    live_server.start()
    assert not any(one.started_at for one in admin.tasks.attempts(task_id)), "it began without the third"
    hosts[1].start(admin)
    task = ended(admin, task_id)
    assert (task.status, task.attempt) == ("succeeded", 1), task.message


@pytest.mark.docker
def test_containers_meet_at_rank_0_and_nobody_else_reaches_it(
    docker_hosts: list[JoinedHost], admin: remotegpu.Client
) -> None:
    gang = submit(admin, image="meeting", command=["/meeting"], env={"HOLD": "1"}, gpus=0)
    until("rank 2 was answered", lambda: admin.tasks.logs(gang, rank=2).text == "all here\n")
    assert sorted(admin.tasks.logs(gang).text.splitlines()) == ["rank 1", "rank 2"]
    zero = next(one for one in admin.tasks.attempts(gang) if one.rank == 0)
    (published,) = docker("port", f"rgpu-{zero.id}").split(" -> ")[1:]
    address, _, port = published.partition(":")
    knocking = {"image": "meeting", "command": ["/meeting", address, port], "nodes": 1, "gpus": 0}
    stranger = ended(admin, submit(admin, **knocking))
    assert admin.tasks.logs(stranger.id).text == "silent\n"
    admin.tasks.stop(gang)
    assert ended(admin, gang).status == "cancelled"
    rules = until("the rules are gone", lambda: _rules_without(port))
    assert "REMOTEGPU-FORWARD" in rules
    again = ended(admin, submit(admin, image="meeting", command=["/meeting"], gpus=0))
    assert (again.status, again.exit_code) == ("succeeded", 0), again.message


def _rules_without(port: str) -> str:
    found = subprocess.run(["iptables", "-S"], capture_output=True, text=True, check=True).stdout
    return "" if f"--ctorigdstport {port}" in found or f"--dport {port} " in found else found
