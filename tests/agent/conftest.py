"""Real agents against a scripted server, with Docker where an engine answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import slurm_cluster as slurm
import task_specs
from agent_process import AgentProcess, clean_up, docker, docker_answers
from agent_workloads import IMAGE
from scripted_server import ScriptedServer
from task_specs import TASK_IMAGE

HERE = Path(__file__).parent
PROGRAMS = ("sh", "sleep", "head", "tr", "true", "cat", "yes", "dd", "seq", "mkdir", "rm")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer(host_id=f"host-{uuid.uuid4().hex[:12]}")
    yield scripted
    scripted.close()


@pytest.fixture(scope="session")
def test_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with one static program; made here, so that no registry is needed."""
    if not docker_answers():
        pytest.skip("no Docker engine answers")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the test image's program")
    folder = tmp_path_factory.mktemp("image")
    subprocess.run(
        ["gcc", "-O1", "-static", "-o", str(folder / "server"), str(HERE / "static_server.c")], check=True
    )
    (folder / "home" / "jovyan").mkdir(parents=True)
    (folder / "tmp").mkdir()
    archive = folder / "image.tar"
    subprocess.run(["tar", "-C", str(folder), "-cf", str(archive), "server", "home", "tmp"], check=True)
    docker("import", "-c", 'CMD ["/server"]', str(archive), IMAGE)
    yield IMAGE
    docker("image", "rm", "-f", IMAGE, check=False)


@pytest.fixture(scope="session")
def task_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with a shell and a few programs of this machine."""
    if not docker_answers():
        pytest.skip("no Docker engine answers")
    folder = tmp_path_factory.mktemp("task-image")
    programs = {name: os.path.realpath(shutil.which(name) or "") for name in PROGRAMS}
    libraries = {path for program in programs.values() for path in linked_files(program)}
    with tarfile.open(folder / "image.tar", "w") as archive:
        for name, program in programs.items():
            archive.add(program, f"bin/{name}")
        for path in libraries:
            archive.add(os.path.realpath(path), path.lstrip("/"))
        for directory, mode in (("home/jovyan", 0o755), ("tmp", 0o1777)):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
    docker("import", "-c", "ENV PATH=/bin", str(folder / "image.tar"), TASK_IMAGE)
    yield TASK_IMAGE
    docker("image", "rm", "-f", TASK_IMAGE, check=False)


def linked_files(program: str) -> list[str]:
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return re.findall(r"(/\S+) \(0x", told)


@pytest.fixture(autouse=True)
def _own_attempt_id() -> None:
    task_specs.renew()


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.SlurmCluster]:
    """A real Slurm with two nodes, which the tests of a process share."""
    if slurm.MISSING:
        pytest.skip(f"no Slurm on this machine: {', '.join(slurm.MISSING)} not found")
    cluster = slurm.SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


RUNTIMES = ["process", pytest.param("docker", marks=pytest.mark.docker)]


@pytest.fixture(params=[*RUNTIMES, "slurm"], scope="module")
def calm_runtime(request: pytest.FixtureRequest) -> str:
    if request.param == "docker":
        request.getfixturevalue("task_image")
    return str(request.param)


@pytest.fixture(scope="module")
def calm_agent(
    request: pytest.FixtureRequest,
    calm_runtime: str,
    calm_server: ScriptedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AgentProcess]:
    """An agent of each runtime that the tests of a module share, since none of them ends it."""
    cluster = request.getfixturevalue("slurm_cluster") if calm_runtime == "slurm" else None
    for agent in _agent(calm_server, calm_runtime, tmp_path_factory.mktemp("calm"), cluster):
        agent.start()
        yield agent


@pytest.fixture(scope="module")
def calm_server(calm_runtime: str) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer(host_id=f"host-{uuid.uuid4().hex[:12]}")
    yield scripted
    scripted.close()


@pytest.fixture(params=RUNTIMES)
def task_agent(
    request: pytest.FixtureRequest, server: ScriptedServer, tmp_path: Path
) -> Iterator[AgentProcess]:
    """An agent of either runtime, for tasks."""
    if request.param == "docker":
        request.getfixturevalue("task_image")
    yield from _agent(server, request.param, tmp_path)


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if request.param == "docker":
        request.getfixturevalue("test_image")
    return str(request.param)


@pytest.fixture
def agent(server: ScriptedServer, runtime: str, tmp_path: Path) -> Iterator[AgentProcess]:
    """Started by the test. Whatever it leaves behind is removed, and its log shown when the test fails."""
    yield from _agent(server, runtime, tmp_path)


@pytest.fixture
def docker_agent(server: ScriptedServer, test_image: str, tmp_path: Path) -> Iterator[AgentProcess]:
    yield from _agent(server, "docker", tmp_path)


@pytest.fixture
def slurm_agent(
    server: ScriptedServer, slurm_cluster: slurm.SlurmCluster, tmp_path: Path
) -> Iterator[AgentProcess]:
    yield from _agent(server, "slurm", tmp_path, slurm_cluster)


@pytest.fixture
def process_agent(server: ScriptedServer, tmp_path: Path) -> Iterator[AgentProcess]:
    yield from _agent(server, "process", tmp_path)


def _agent(
    server: ScriptedServer, runtime: str, tmp_path: Path, cluster: slurm.SlurmCluster | None = None
) -> Iterator[AgentProcess]:
    state_dir = tmp_path / "state" if cluster is None else tmp_path / "nodes" / slurm.NODES[0]
    agent = AgentProcess(server, state_dir, runtime, cluster=cluster)
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.process.terminate()
        agent.process.wait(20)
    if (agent.state_dir / "agent.log").exists():
        print(agent.log)
    clean_up(server.host_id, runtime)
