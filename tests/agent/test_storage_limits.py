"""A real agent and a real server: a home on disk becomes a number, a refusal, and is gone when deleted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import clean_up
from joined_host import JoinedHost, server_program, until

import remotegpu
from remotegpu_server.testing import LiveServer

MIB = 2**20


@pytest.fixture
def admin(live_server: LiveServer) -> Iterator[remotegpu.Client]:
    with remotegpu.Client(live_server.url, "") as anonymous:
        token = anonymous.auth.login(username="admin", password=live_server.admin_password)
    with remotegpu.Client(live_server.url, token.secret) as client:
        yield client


@pytest.mark.parametrize("shared", [False, True], ids=["own disk", "shared root"])
def test_home_is_measured_refuses_what_is_too_much_and_leaves_the_disk(
    live_server: LiveServer, admin: remotegpu.Client, tmp_path: Path, shared: bool
) -> None:
    root = tmp_path / "shared" if shared else tmp_path / "one" / "homes"
    (tmp_path / "shared").mkdir()
    command = server_program(tmp_path)
    admin.images.create(name="lab", reference="process/lab", runtime="process", command=command)
    options = ["--runtime", "process", *(["--shared-home", f"nfs={root}"] if shared else [])]
    host = JoinedHost(live_server, admin, "one", tmp_path / "one", options)
    try:
        host.start(admin)
        os.kill(host.pid, signal.SIGSTOP)  # so that the files are there before anybody looks
        made = admin.environments.create(name="work", image="lab", cpus=0.1, memory_bytes=2**28)
        (volume,) = admin.volumes.list()
        assert (volume.size_bytes, volume.shared_home) == (None, "nfs" if shared else None)
        home = root / volume.id
        home.mkdir(parents=True)
        (home / "data").write_bytes(b"x" * 8 * MIB)
        os.link(home / "data", home / "same")
        os.kill(host.pid, signal.SIGCONT)
        admin.environments.wait_ready(made.id, timeout_s=60)
        until("it is measured", lambda: admin.volumes.get(volume.id).size_bytes is not None, timeout_s=60)
        size = admin.volumes.get(volume.id).size_bytes
        assert size is not None
        assert 8 * MIB <= size < 9 * MIB
        admin.quotas.set("user", "admin", limits={"storage_bytes": 4 * MIB})
        with pytest.raises(remotegpu.QuotaExceeded, match="may take 4 MiB of disk; 8"):
            admin.environments.create(name="more", image="lab", cpus=0.1, memory_bytes=2**28)
        with pytest.raises(remotegpu.InUse):
            admin.volumes.delete(volume.id)
        admin.environments.stop(made.id)
        admin.environments.wait_stopped(made.id, timeout_s=30)
        assert admin.volumes.delete(volume.id).status == "removing"
        until("it is gone", lambda: admin.volumes.get(volume.id).status == "removed", timeout_s=30)
        assert not home.exists()
        admin.environments.start(made.id)
        admin.environments.wait_ready(made.id, timeout_s=60)
        (new,) = admin.volumes.list()
        assert new.id != volume.id
        admin.environments.stop(made.id)
        admin.environments.wait_stopped(made.id, timeout_s=30)
    finally:
        host.stop()
        clean_up(host.id, "process")
