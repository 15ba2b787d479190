"""A real agent process, and what it leaves on the machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agent_workloads import workload
from scripted_server import CREDENTIAL, ScriptedServer
from slurm_cluster import PARTITION, SlurmCluster

from remotegpu.types.agent import Workload
from remotegpu_agent import processes

HOST_LABEL = "org.remotegpu.host"


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


def docker_answers() -> bool:
    return shutil.which("docker") is not None and bool(
        docker("version", "--format", "{{.Server.Version}}", check=False)
    )


@dataclass
class AgentProcess:
    """``remotegpu-agent run`` in its own state directory."""

    server: ScriptedServer
    state_dir: Path
    runtime: str
    options: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    cluster: SlurmCluster | None = None
    """With the runtime ``slurm``: ``state_dir`` is then the folder of one node, and its name the node's."""
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, registered: bool = True) -> AgentProcess:
        before = len(self.server.sessions)
        credential = {
            "url": self.server.url, "host_id": self.server.host_id, "host_name": "test", "secret": CREDENTIAL,
        }  # fmt: skip
        self.state_dir.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "credential.json").write_text(json.dumps(credential))
        words = ["run", "--state-dir", str(self.state_dir), "--runtime", self.runtime,
                 "--simulate-gpus", "2xA100-80GB"]  # fmt: skip
        if self.cluster is not None:
            words = ["slurm", "--state-dir", str(self.state_dir.parent), "--partition", PARTITION,
                     "--gpu", "a100=A100-80GB", "--simulated-gpus"]  # fmt: skip
        environ = {**os.environ, **(self.cluster.environ if self.cluster is not None else {}), **self.environ}
        with (self.state_dir / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "remotegpu_agent", *words, *self.options],
                stdout=log,
                stderr=log,
                env=environ,
            )
        if registered:
            self.server.until("the agent registers", lambda: len(self.server.sessions) > before)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def wait(self, timeout_s: float = 20) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)

    @property
    def log(self) -> str:
        return (self.state_dir / "agent.log").read_text()

    def workload(self, workload_id: str = "env-1", **changes: Any) -> Workload:
        """One that this runtime can run."""
        if self.runtime == "docker":
            changes.setdefault("command", None)
        return workload(workload_id, **changes)


def get(address: str | None, path: str) -> str:
    assert address is not None
    with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:  # noqa: S310
        return str(answer.read().decode())


def tell_to_exit(address: str | None, code: int) -> None:
    """Its server ends instead of answering."""
    with pytest.raises(OSError):
        get(address, f"/exit/{code}")


def instances(agent: AgentProcess, workload_id: str = "env-1") -> int:
    """How many containers or process groups of a workload this machine has."""
    host_id = agent.server.host_id
    if agent.runtime == "docker":
        return len(docker("ps", "-aq", "--filter", f"label={HOST_LABEL}={host_id}").split())
    return sum(1 for pid in processes.marked(f"{host_id}/{workload_id}/") if os.getsid(pid) == pid)


def leftovers(agent: AgentProcess, *, running: bool = False) -> list[str]:
    """Containers, networks or processes of this agent's host; ``running``: only what runs."""
    host_id = agent.server.host_id
    if agent.runtime in ("process", "slurm"):
        marker = f"REMOTEGPU_PROCESS_MARKER={host_id}/".encode()
        found = [entry.name for entry in Path("/proc").iterdir() if marker in _environ(entry)]
        jobs = agent.cluster.live_jobs(host_id) if agent.cluster is not None else []
        return found + jobs
    label = f"label={HOST_LABEL}={host_id}"
    found = docker("ps", "-q" if running else "-aq", "--filter", label).split()
    return found if running else found + docker("network", "ls", "-q", "--filter", label).split()


def clean_up(host_id: str, runtime: str) -> None:
    if runtime in ("process", "slurm"):
        marker = f"REMOTEGPU_PROCESS_MARKER={host_id}/".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and marker in _environ(entry):
                os.kill(int(entry.name), signal.SIGKILL)
        return
    label = f"label={HOST_LABEL}={host_id}"
    if containers := docker("ps", "-aq", "--filter", label).split():
        docker("rm", "-f", "-v", *containers)
    if networks := docker("network", "ls", "-q", "--filter", label).split():
        docker("network", "rm", *networks)


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""
