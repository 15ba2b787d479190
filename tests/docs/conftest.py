"""The platform on which the examples run: a real server, a real agent, no Docker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import remotegpu
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.testing import LiveServer

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from joined_host import JoinedHost, server_program


@dataclass(frozen=True)
class Platform:
    """Where the examples sign in."""

    url: str
    token: str


@pytest.fixture(scope="module")
def platform(
    cluster: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """A host ``gpu-01`` with two simulated GPUs, an image ``base``, and the token of an admin."""
    folder = tmp_path_factory.mktemp("platform")
    with ExitStack() as stack:
        cluster.clone_database(template, "examples")
        stack.callback(cluster.drop_database, "examples")
        live = LiveServer(database_url=cluster.url("examples"), folder=folder)
        stack.callback(live.stop)
        live.start()
        with remotegpu.Client(live.url, "") as nobody:
            session = nobody.auth.login(username="admin", password=live.admin_password)
        admin = stack.enter_context(remotegpu.Client(live.url, session.secret))
        options = ["--runtime", "process", "--simulate-gpus", "2xA100-80GB"]
        host = JoinedHost(live, admin, "gpu-01", folder / "host", options)
        stack.callback(host.stop)
        host.start(admin)
        stack.callback(_remove_environments, admin)
        command = server_program(folder)
        admin.images.create(name="base", reference="process/base", runtime="process", command=command)
        yield Platform(live.url, session.secret)


def _remove_environments(admin: remotegpu.Client) -> None:
    """What an example that failed left running would outlive its agent."""
    for environment in admin.environments.list():
        admin.environments.delete(environment.id)
        admin.environments.wait_stopped(environment.id, timeout_s=30)
