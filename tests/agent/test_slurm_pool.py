"""A partition of a real Slurm as a pool of hosts of a real server: one agent process for two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joined_host import until
from slurm_cluster import NODES, PARTITION, SlurmCluster

import remotegpu
from remotegpu import errors
from remotegpu_server.testing import LiveServer


class Pool:
    """``remotegpu-agent slurm`` with every node enrolled."""

    def __init__(
        self, live: LiveServer, admin: remotegpu.Client, cluster: SlurmCluster, folder: Path
    ) -> None:
        self.admin, self.cluster, self.folder = admin, cluster, folder
        self._process: subprocess.Popen[bytes] | None = None
        for node in NODES:
            admin.hosts.create(name=node)
            (folder / node).mkdir(parents=True)
            token = folder / f"{node}-token"
            token.write_text(admin.hosts.create_enrollment_token(node).secret)
            self._agent(
                "enroll", "--url", live.url, "--state-dir", str(folder / node), "--token-file", str(token)
            )

    def start(self, **environ: str) -> None:
        words = [
            "slurm", "--state-dir", str(self.folder), "--partition", PARTITION, "--gpu", "a100=A100-80GB",
            "--simulated-gpus", "--poll-wait", "5",
        ]  # fmt: skip
        with (self.folder / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "remotegpu_agent", *words],
                stdout=log, stderr=log, env={**os.environ, **self.cluster.environ, **environ},
            )  # fmt: skip

    def until_ready(self) -> None:
        until("both nodes are ready", lambda: all(self.admin.hosts.get(node).ready for node in NODES))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "start it first"
        return self._process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(20)
        print((self.folder / "agent.log").read_text())

    def _agent(self, *words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "remotegpu_agent", *words], capture_output=True, timeout=30, check=True
        )

    def submit(self, script: str, **more: Any) -> str:
        fields = {"image": "jobs", "command": ["sh", "-c", script], "gpus": 1, "memory_bytes": 2**27} | more
        return str(self.admin.tasks.submit(**fields).tasks[0].id)

    def ended(self, task_id: str) -> Any:
        def probe() -> Any:
            task = self.admin.tasks.get(task_id)
            return task if task.finished_at is not None else None

        return until("the task has ended", probe, timeout_s=60)

    def until_running(self, task_id: str) -> None:
        until("it runs", lambda: self.admin.tasks.get(task_id).status == "running", timeout_s=60)

    def jobs_of(self, task_id: str) -> int:
        """How many jobs of all its attempts Slurm has seen."""
        return sum(len(self.cluster.jobs(f"rg-{one.id}")) for one in self.admin.tasks.attempts(task_id))


@pytest.fixture
def admin(live_server: LiveServer) -> Iterator[remotegpu.Client]:
    with remotegpu.Client(live_server.url, "") as anonymous:
        token = anonymous.auth.login(username="admin", password=live_server.admin_password)
    with remotegpu.Client(live_server.url, token.secret) as client:
        yield client


@pytest.fixture
def pool(
    live_server: LiveServer, admin: remotegpu.Client, slurm_cluster: SlurmCluster, tmp_path: Path
) -> Iterator[Pool]:
    admin.images.create(name="jobs", reference="slurm/sh", runtime="slurm", command=["sh"])
    made = Pool(live_server, admin, slurm_cluster, tmp_path / "pool")
    try:
        yield made
    finally:
        made.stop()


def test_nodes_are_hosts_and_tasks_are_jobs_on_their_gpus(pool: Pool, admin: remotegpu.Client) -> None:
    pool.start()
    pool.until_ready()
    gpus = list(admin.gpus.list())
    assert [(gpu.model, gpu.simulated) for gpu in gpus] == [("A100-80GB", True)] * 4
    assert {admin.hosts.get(node).runtime for node in NODES} == {"slurm"}

    say = "echo $SLURMD_NODENAME $SLURM_JOB_GPUS $CUDA_VISIBLE_DEVICES; exit 3"
    task_id = pool.submit(say, gpus=2)
    task = pool.ended(task_id)
    assert (task.status, task.reason, task.exit_code) == ("failed", "exit_code", 3)
    (attempt,) = admin.tasks.attempts(task_id)
    assert admin.tasks.logs(task_id).text == f"{attempt.host_name} 0,1 0,1\n"
    until("its GPUs are free", lambda: all(gpu.free for gpu in admin.gpus.list()))
    told = [event.message for event in admin.events.list(subject_type="task", subject_id=task_id)]
    assert any(f"of Slurm on {attempt.host_name}, GPUs 0,1." in message for message in told), told

    with pytest.raises(errors.ImageNotAllowed, match="nodes of Slurm, which run tasks and no environments"):
        admin.environments.create(name="lab", image="jobs")


def test_drained_node_takes_no_work_and_says_why(pool: Pool, admin: remotegpu.Client) -> None:
    first, second = NODES
    pool.start()
    pool.until_ready()
    pool.cluster.run("scontrol", "update", f"nodename={first}", "state=drain", "reason=bad fan")
    try:
        until("it is not ready", lambda: not admin.hosts.get(first).ready)
        assert "drained: bad fan" in (admin.hosts.get(first).not_ready_reason or "")
        task_id = pool.submit("true")
        assert pool.ended(task_id).status == "succeeded"
        assert [attempt.host_name for attempt in admin.tasks.attempts(task_id)] == [second]
    finally:
        pool.cluster.run("scontrol", "update", f"nodename={first}", "state=resume")
    pool.until_ready()


def test_killed_agent_doubles_nothing_and_stop_and_timeout_end_jobs(
    pool: Pool, admin: remotegpu.Client
) -> None:
    pool.start()
    pool.until_ready()
    kept = pool.submit("sleep 3; exit 4")
    stopped = pool.submit("trap '' TERM; while :; do sleep 0.1; done", stop_grace_s=1)
    for task_id in (kept, stopped):
        pool.until_running(task_id)
    pool.kill()
    admin.tasks.stop(stopped)
    late = pool.submit("sleep 600", timeout_s=1, stop_grace_s=1)
    pool.start()
    assert (pool.ended(kept).exit_code, pool.ended(kept).attempt) == (4, 1)
    assert pool.ended(stopped).status == "cancelled"
    assert pool.ended(late).status == "timed_out"
    assert [pool.jobs_of(task_id) for task_id in (kept, stopped, late)] == [1, 1, 1]
    until("its GPUs are free", lambda: all(gpu.free for gpu in admin.gpus.list()))
