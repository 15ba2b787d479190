"""Fixtures for every part that needs a database or a server.

``cluster``       one PostgreSQL per run (fsync off)
``database_url``  a fresh, migrated database of this test, which may commit
``settings``      settings of a server on it
``app``           the running app without background loops; ``app.state.database`` for sessions
``client``        httpx client of the app, without a token; ``actors`` makes people with tokens::

                      ada = await actors.user("ada")            # of the customer "default"
                      answer = await client.get("/v1/me", headers=ada.headers)

``live_server``   a real server process on a free loopback port: ``live_server.url``, ``.admin_headers``,
                  ``.hub_token``, ``.kill()``, ``.start()``
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from cryptography.fernet import Fernet
from fastapi import FastAPI

from remotegpu_server import embedded_postgres
from remotegpu_server.app import create_app
from remotegpu_server.db import schema
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.observability import configure_logging
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors, LiveServer

_numbers = itertools.count(1)
_TEMPLATE = "template_migrated"

configure_logging("warning")


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedPostgres]:
    # Not below pytest's own folder: as root, PostgreSQL runs under another account, which cannot enter that.
    folder = Path(tempfile.mkdtemp(prefix="remotegpu-test-"))
    folder.chmod(0o755)
    try:
        yield embedded_postgres.ensure_running(folder, durable=False)
    finally:
        embedded_postgres.stop(folder)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(cluster: EmbeddedPostgres) -> str:
    """A database at the newest schema, to be cloned: 40 ms instead of a migration."""
    cluster.ensure_database(_TEMPLATE)
    schema.migrate(cluster.url(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture
def empty_database_url(cluster: EmbeddedPostgres) -> Iterator[str]:
    """A database without any table."""
    name = f"empty_{next(_numbers)}"
    cluster.ensure_database(name)
    yield cluster.url(name)
    cluster.drop_database(name)


@pytest.fixture
def database_url(cluster: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    cluster.clone_database(template, name)
    yield cluster.url(name)
    cluster.drop_database(name)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url,
        secret_key=Fernet.generate_key().decode(),
        workload_url="http://remotegpu.test",
        blob_dir=tmp_path / "blobs",
        pool_size=10,
    )


@pytest_asyncio.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    made = create_app(settings, run_loops=False)
    async with made.router.lifespan_context(made):
        yield made


@pytest_asyncio.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=("192.0.2.10", 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://remotegpu.test") as made:
        yield made


@pytest.fixture
def actors(app: FastAPI) -> Actors:
    return Actors(app.state.database)


@pytest.fixture
def live_server(database_url: str, tmp_path: Path) -> Iterator[LiveServer]:
    server = LiveServer(database_url=database_url, folder=tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.stop()
