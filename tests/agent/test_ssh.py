"""A real login: the base image's SSH server in a container of a real agent, with keys of the real server."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from agent_process import clean_up, docker
from joined_host import JoinedHost, until

import remotegpu
from remotegpu_server.testing import PASSWORD, LiveServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]
IMAGE = "remotegpu/base:latest"


@pytest.fixture
def base_image() -> str:
    label = '{{index .Config.Labels "org.remotegpu.endpoints"}}'
    if docker("image", "inspect", "--format", label, IMAGE, check=False) != "ssh=2222":
        pytest.skip("the base image with an SSH server is not here: `make image` builds it")
    return IMAGE


@pytest.fixture
def admin(live_server: LiveServer) -> Iterator[remotegpu.Client]:
    with remotegpu.Client(live_server.url, "") as anonymous:
        token = anonymous.auth.login(username="admin", password=live_server.admin_password)
    with remotegpu.Client(live_server.url, token.secret) as client:
        yield client


@pytest.fixture
def host(live_server: LiveServer, admin: remotegpu.Client, tmp_path: Path) -> Iterator[JoinedHost]:
    made = JoinedHost(live_server, admin, "gpu-host", tmp_path / "agent", ["--runtime", "docker"])
    made.start(admin)
    yield made
    made.stop()
    clean_up(made.id, "docker")


class Somebody:
    """A user with a key of their own, and an SSH client that knows no other."""

    def __init__(self, live: LiveServer, admin: remotegpu.Client, name: str, folder: Path) -> None:
        self.key = folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        admin.users.create(username=name, password=PASSWORD)
        with remotegpu.Client(live.url, "") as anonymous:
            token = anonymous.auth.login(username=name, password=PASSWORD)
        self.client = remotegpu.Client(live.url, token.secret)

    def register(self) -> Any:
        return self.client.ssh_keys.create(name="laptop", public_key=self.key.with_suffix(".pub").read_text())

    def command(self, access: Any) -> list[str]:
        return [
            "ssh", "-i", str(self.key), "-p", str(access.port), "-F", "none",
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5",
            f"{access.username}@{access.host}",
        ]  # fmt: skip

    def enters(self, access: Any, words: str = "true") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command(access), words], capture_output=True, text=True, timeout=30, check=False
        )


@pytest.fixture
def people(live_server: LiveServer, admin: remotegpu.Client, tmp_path: Path) -> Iterator[list[Somebody]]:
    made = [Somebody(live_server, admin, name, tmp_path) for name in ("ada", "eve")]
    yield made
    for person in made:
        person.client.close()


def test_key_opens_its_owners_environment_only_and_nothing_after_its_removal(
    host: JoinedHost,
    admin: remotegpu.Client,
    people: list[Somebody],
    base_image: str,
    database_url: str,
) -> None:
    admin.images.create(name="base", reference=base_image)
    ada, eve = people
    eve.register()
    made = ada.client.environments.create(name="work", image="base", memory_bytes=2**30)
    ada.client.environments.wait_ready(made.id, timeout_s=90, progress=False)
    access = ada.client.environments.access(made.id)
    assert access.ssh is not None
    assert access.ssh_note is not None
    assert "ssh-key add" in access.ssh_note
    until("the SSH server listens", lambda: _greets(access.ssh))
    refused = ada.enters(access.ssh)
    assert "Permission denied (publickey)" in refused.stderr, "no password is asked for, and no key is known"

    key = ada.register()
    until("the key opens it", lambda: ada.enters(access.ssh).returncode == 0, timeout_s=30)
    inside = ada.enters(access.ssh, "id -un; pwd; command -v python; cat /run/remotegpu/ssh/authorized_keys")
    assert inside.stdout.split()[:3] == ["jovyan", "/home/jovyan", "/opt/remotegpu/bin/python"]
    assert inside.stdout.strip().endswith(key.public_key)
    assert ada.enters(access.ssh, "touch /run/remotegpu/ssh/more").returncode != 0, "keys are read-only"
    assert "Permission denied" in eve.enters(access.ssh).stderr
    root = subprocess.run(
        [*ada.command(access.ssh)[:-1], f"root@{access.ssh.host}", "true"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "Permission denied" in root.stderr

    with subprocess.Popen(
        [*ada.command(access.ssh), "cat"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ):
        until("its connection is counted", lambda: _connections(database_url, made.id) >= 1)

    ada.client.ssh_keys.delete(key.id)
    until("the key opens nothing", lambda: "Permission denied" in ada.enters(access.ssh).stderr, timeout_s=30)

    ada.register()
    until("it opens again", lambda: ada.enters(access.ssh).returncode == 0, timeout_s=30)
    fingerprint = _host_key(access.ssh)
    again = ada.client.environments.restart(made.id)
    assert again.generation == made.generation + 1
    ada.client.environments.wait_ready(made.id, timeout_s=90, progress=False)
    moved = ada.client.environments.access(made.id).ssh
    until("its key opens the new generation", lambda: ada.enters(moved).returncode == 0, timeout_s=30)
    assert _host_key(moved) == fingerprint, "one host key for each environment"

    admin.users.suspend("ada")
    until("a suspended account opens nothing", lambda: "denied" in ada.enters(moved).stderr, timeout_s=30)
    admin.users.resume("ada")
    folder = host.state / "ssh"
    assert [one.name for one in folder.iterdir()] == [made.id]
    admin.environments.stop(made.id)
    admin.environments.wait_stopped(made.id, timeout_s=60)
    assert list(folder.iterdir()) == [], "no key is left on the host"


def _greets(access: Any) -> bool:
    try:
        with socket.create_connection((access.host, access.port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _host_key(access: Any) -> str:
    found = subprocess.run(
        ["ssh-keyscan", "-t", "ed25519", "-p", str(access.port), access.host],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    return found.stdout.split()[-1]


def _connections(database_url: str, environment_id: str) -> int:
    """As the host's agent measured it last."""
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        found = connection.scalar(
            sa.text("SELECT workloads -> :id ->> 'connections' FROM host_samples ORDER BY at DESC LIMIT 1"),
            {"id": environment_id},
        )
    engine.dispose()
    return int(found or 0)
