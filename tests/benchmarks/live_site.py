"""A real server on a durable PostgreSQL of its own, and a real agent with the process runtime, all here."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import remotegpu
from remotegpu_server import embedded_postgres
from remotegpu_server.db import schema
from remotegpu_server.testing import LiveServer

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from joined_host import JoinedHost


@dataclass(frozen=True)
class Site:
    """What a benchmark of tasks needs. The image ``base`` runs processes."""

    server: LiveServer
    host: JoinedHost
    admin: remotegpu.Client


@contextmanager
def live_site() -> Iterator[Site]:
    """Everything is stopped and removed at the end; the agent's log is printed when something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="remotegpu-bench-"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        cluster = embedded_postgres.ensure_running(folder)
        stack.callback(embedded_postgres.stop, folder)
        cluster.ensure_database("bench")
        schema.migrate(cluster.url("bench"))
        server = LiveServer(database_url=cluster.url("bench"), folder=folder)
        stack.callback(server.stop)
        server.start(REMOTEGPU_LOG_LEVEL="warning")
        with remotegpu.Client(server.url, "") as nobody:
            session = nobody.auth.login(username="admin", password=server.admin_password)
        admin = stack.enter_context(remotegpu.Client(server.url, session.secret))
        options = ["--runtime", "process", "--simulate-gpus", "2xA100-80GB"]
        host = JoinedHost(server, admin, "bench", folder / "host", options)
        stack.callback(host.kill)
        host.start(admin)
        admin.images.create(name="base", reference="process/base", runtime="process", command=["true"])
        yield Site(server, host, admin)
