"""Peers of ``bench_dispatch.py``: Slurm from the distribution, and Ray's jobs, each alone on this machine.

Both run what we run, ``date``, and are asked as their users ask: ``sbatch``, and Ray's own client.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

import slurm_cluster
from slurm_cluster import SlurmCluster, free_ports

COMMAND = ["date", "+%s%N"]
_CLOCK = re.compile(r"^\d{19}$", re.MULTILINE)
"""What it says; Ray puts words of its own around it."""
PAUSE_S = 0.5
"""Between the end of one and the next submit: all of its end is over, and the host idle."""
WAIT_S = 60.0
RAY_START_S = 120.0


def first_instruction(submit: Callable[[], Callable[[], str]]) -> float:
    """Seconds from the call of ``submit`` until the command read the clock; what it answers is asked for the
    command's output until there is some, at first after a while, so that nobody looks over its shoulder.
    """
    time.sleep(PAUSE_S)
    begun = time.time_ns()
    output = submit()
    time.sleep(PAUSE_S)
    deadline = time.monotonic() + WAIT_S
    while (said := _CLOCK.search(output())) is None:
        assert time.monotonic() < deadline, f"it did not run within {WAIT_S:g} s"
        time.sleep(0.1)
    return (int(said[0]) - begun) / 1e9


def slurm_s(rounds: int) -> list[float] | str:
    """Seconds of each, or why there is no Slurm to ask."""
    if slurm_cluster.MISSING:
        return f"Slurm is not installed: {', '.join(slurm_cluster.MISSING)} missing"
    folder = Path(tempfile.mkdtemp(prefix="remotegpu-slurm-"))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        environ = {**os.environ, **cluster.environ}

        def submit() -> Callable[[], str]:
            told = folder / f"told-{time.monotonic_ns()}"
            subprocess.run(
                ["sbatch", "--quiet", f"--chdir={folder}", f"--output={told}", "--wrap", " ".join(COMMAND)],
                env=environ, check=True, capture_output=True,
            )  # fmt: skip
            return lambda: told.read_text() if told.exists() else ""

        first_instruction(submit)
        return [first_instruction(submit) for _ in range(rounds)]
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def ray_s(rounds: int) -> list[float] | str:
    """Seconds of each, or why there is no Ray to ask."""
    try:
        from ray.job_submission import JobStatus, JobSubmissionClient
    except ImportError as error:
        return f"Ray is not installed: {error}"
    with _ray_head() as address:
        client = JobSubmissionClient(address)

        def submit() -> Callable[[], str]:
            job = client.submit_job(entrypoint=" ".join(COMMAND))

            def output() -> str:
                status = client.get_job_status(job)
                assert status not in (JobStatus.FAILED, JobStatus.STOPPED), client.get_job_info(job)
                return str(client.get_job_logs(job)) if status == JobStatus.SUCCEEDED else ""

            return output

        deadline = time.monotonic() + RAY_START_S
        while True:  # the dashboard answers before there is an agent that takes jobs
            try:
                first_instruction(submit)
                break
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
        return [first_instruction(submit) for _ in range(rounds)]


@contextmanager
def _ray_head() -> Iterator[str]:
    """A node of its own on free ports; the address of its jobs."""
    folder = Path(tempfile.mkdtemp(prefix="rgpu-ray-"))
    port, dashboard = free_ports(2)
    environ = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
    with (folder / "out").open("wb") as out:
        head = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
             f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder / 'ray'}",
             "--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"],
            env=environ, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + RAY_START_S
        while not _answers(f"{address}/api/version"):
            assert head.poll() is None, (folder / "out").read_text()
            assert time.monotonic() < deadline, f"Ray did not start:\n{(folder / 'out').read_text()}"
            time.sleep(0.5)
        yield address
    finally:
        started = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait(10)
        for process in psutil.wait_procs(started, timeout=10)[1]:
            process.kill()
        shutil.rmtree(folder)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
