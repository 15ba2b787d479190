"""Where functions and cells run: a real server, a real agent with the process runtime, no Docker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import remotegpu
from remotegpu._remote import functions
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.testing import LiveServer

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from joined_host import JoinedHost, server_program, until

__all__ = ["server_program", "until"]


@pytest.fixture(scope="module")
def site(
    cluster: EmbeddedPostgres,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[remotegpu.Client]:
    """A host with two simulated GPUs and an image ``base``; the client of an admin, who is signed in."""
    folder = tmp_path_factory.mktemp("site")
    database = f"remote_{request.module.__name__.rpartition('.')[2]}"
    with ExitStack() as stack:
        cluster.clone_database(template, database)
        stack.callback(cluster.drop_database, database)
        live = LiveServer(database_url=cluster.url(database), folder=folder)
        stack.callback(live.stop)
        live.start()
        with remotegpu.Client(live.url, "") as nobody:
            session = nobody.auth.login(username="admin", password=live.admin_password)
        admin = stack.enter_context(remotegpu.Client(live.url, session.secret))
        options = ["--runtime", "process", "--simulate-gpus", "2xA100-80GB"]
        host = JoinedHost(live, admin, "gpu-01", folder / "host", options)
        stack.callback(host.stop)
        host.start(admin)
        admin.images.create(name="base", reference="process/base", runtime="process", command=["true"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REMOTEGPU_URL", live.url)
            patch.setenv("REMOTEGPU_TOKEN", session.secret)
            yield admin
        functions._client.cache_clear()


@pytest.fixture
def client(site: remotegpu.Client) -> remotegpu.Client:
    return site
