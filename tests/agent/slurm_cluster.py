"""A real Slurm from this machine's packages: one controller, two node daemons, munge.

The device files of the GPUs are ``/dev/null`` and ``/dev/zero``: simulated, as every part says.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
NODES = ("node1", "node2")
PARTITION = "gpu"
MISSING = [
    name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None
]
"""Programs of Slurm that this machine lacks."""

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
MessageTimeout=10
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs=4 RealMemory=4000 Gres=gpu:a100:2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs=4 RealMemory=4000 Gres=gpu:a100:2
PartitionName=gpu Nodes=node1,node2 Default=YES MaxTime=1:00:00 State=UP
"""


class SlurmCluster:
    """All of its files lie in one folder, all of its processes are children of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(mode=0o755)
        (folder / "munge" / "key").write_bytes(os.urandom(64))
        (folder / "munge" / "key").chmod(0o400)
        controller, *ports = free_ports(1 + len(NODES))
        self.config.write_text(
            CONFIG.format(
                host=socket.gethostname(),
                user=getpass.getuser(),
                folder=folder,
                controller=controller,
                **dict(zip(NODES, map(str, ports), strict=True)),
            )
        )
        lines = [f"NodeName={node} Name=gpu Type=a100 File=/dev/{file}" for node in NODES for file in DEVICES]
        (folder / "gres.conf").write_text("\n".join(lines) + "\n")
        (folder / "cgroup.conf").touch()

    @property
    def environ(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def start(self) -> None:
        munge = self.folder / "munge"
        options = [f"--{name}={munge / name.removesuffix('-file')}" for name in MUNGE_FILES]
        self._spawn("munged", "--foreground", "--force", *options)
        until("munge answers", lambda: (munge / "socket").exists())
        self.start_controller()
        for node in NODES:
            self._spawn("slurmd", "-D", "-N", node, key=node)
        until("its nodes are idle", lambda: self.states() == dict.fromkeys(NODES, "idle"))

    def start_controller(self) -> None:
        self._spawn("slurmctld", "-D", "-i")

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def stop(self) -> None:
        if "slurmctld" in self._children:
            self.run("scancel", f"--user={getpass.getuser()}")
            until("its jobs are gone", lambda: self.run("squeue", "--noheader") == "")
        for name in reversed(list(self._children)):
            self._end(name)

    def run(self, *words: str) -> str:
        done = subprocess.run(
            words, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%N %T"],
            env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return dict(line.split() for line in done.stdout.splitlines())

    def jobs(self, name: str = "") -> list[tuple[str, str, str]]:
        """Number, name and state of all jobs, or of those with this name."""
        told = self.run("squeue", "--noheader", "--states=all", "--format=%i|%j|%T")
        found = [tuple(line.split("|")) for line in told.splitlines()]
        return [(one[0], one[1], one[2]) for one in found if not name or one[1] == name]

    def live_jobs(self, host_id: str) -> list[str]:
        """Jobs of this host that Slurm does not take for ended."""
        told = self.run("squeue", "--noheader", "--format=%j|%k").splitlines()
        return [line.partition("|")[0] for line in told if f" {host_id} " in line]

    def _spawn(self, *words: str, key: str = "") -> None:
        name = key or words[0]
        with (self.folder / f"{name}.out").open("ab") as output:
            self._children[name] = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environ},
            )

    def _end(self, name: str) -> None:
        child = self._children.pop(name)
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)


DEVICES = ("null", "zero")
MUNGE_FILES = ("socket", "key-file", "pid-file", "log-file", "seed-file")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def until(what: str, probe: Callable[[], object], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not probe():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
