"""A task on three hosts, on real agents with the real server: ranks meet over TCP; one failure ends all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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
