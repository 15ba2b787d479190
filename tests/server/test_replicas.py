"""Several server processes on one PostgreSQL, under load: kills, pauses, and a database that crashes.

Clients keep a ledger of what was acknowledged; agents are hollow. At the end nothing acknowledged is missing,
nothing is there twice, nothing is held by what has ended, and the invariants hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server import embedded_postgres, leadership
from remotegpu_server.db.engine import Database, connect
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.leadership import Candidate
from remotegpu_server.testing import LiveServer

TAKEOVER_S = 15.0
GPUS = 3


@dataclass
class Replicas:
    """Servers that share a database and the key that seals stored answers."""

    folder: Path
    url: str
    servers: list[LiveServer] = field(default_factory=list)

    def add(self, **environ: str) -> LiveServer:
        folder = self.folder / f"server-{len(self.servers)}"
        folder.mkdir()
        server = LiveServer(database_url=self.url, folder=folder)
        server.start(REMOTEGPU_SECRET_KEY_FILE=str(self.folder / "key"), **environ)
        self.servers.append(server)
        return server

    def leader(self) -> LiveServer | None:
        """Who says that it leads."""
        for server in self.servers:
            with contextlib.suppress(httpx.TransportError):
                said = httpx.get(f"{server.url}/metrics", timeout=2).text
                if "remotegpu_leading 1.0" in said:
                    return server
        return None


@pytest.fixture
def replicas(tmp_path: Path, database_url: str) -> Iterator[Replicas]:
    made = Replicas(tmp_path, database_url)
    (tmp_path / "key").write_text(Fernet.generate_key().decode())
    try:
        yield made
    finally:
        for server in made.servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGCONT)
            server.stop()


@pytest.fixture
async def database(replicas: Replicas) -> AsyncIterator[Database]:
    made = connect(replicas.url, pool_size=2)
    yield made
    await made.close()


@dataclass
class Load:
    """Users who create and delete environments, each through whichever server answers, and one agent."""

    replicas: Replicas
    admin: dict[str, str]
    agent: HollowAgent
    ledger: dict[str, str] = field(default_factory=dict)
    """Environment by Idempotency-Key: what a server has acknowledged."""
    slowest_s: float = 0.0
    statuses: set[int] = field(default_factory=set)
    ending: bool = False

    async def ask(
        self, method: str, path: str, headers: dict[str, str], body: object = None, patience_s: float = 60
    ) -> httpx.Response:
        """Until a server answers with something else than that it cannot now; each try at the next server."""
        began = time.monotonic()
        attempt = 0
        async with httpx.AsyncClient(timeout=5) as client:
            while True:
                server = self.replicas.servers[attempt % len(self.replicas.servers)]
                attempt += 1
                try:
                    answer = await client.request(method, server.url + path, headers=headers, json=body)
                    self.statuses.add(answer.status_code)
                    if answer.status_code < 500:
                        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                        return answer
                    assert answer.status_code == 503, answer.text
                    assert "Retry-After" in answer.headers
                except httpx.TransportError:
                    pass
                assert time.monotonic() < began + patience_s, f"{method} {path} found no server"
                await asyncio.sleep(0.1)

    async def user(self, number: int) -> None:
        turn = 0
        while not self.ending:
            turn += 1
            key = f"u{number}-{turn}"
            spec = {"name": key, "image": "base", "gpus": 1, "cpus": 1, "memory_bytes": 2**30}
            headers = self.admin | {"Idempotency-Key": key}
            answer = await self.ask("POST", "/v1/environments", headers, spec)
            assert answer.status_code == 201, answer.text
            self.ledger[key] = answer.json()["id"]
            if turn % 2:
                ended = await self.ask("DELETE", f"/v1/environments/{self.ledger[key]}", self.admin)
                assert ended.status_code in (204, 404), ended.text
            await asyncio.sleep(0.05)

    async def obey(self) -> None:
        """The agent's loop: heartbeat, read what is desired, do it, say so."""
        while not self.ending:
            for server in self.replicas.servers:
                async with httpx.AsyncClient(base_url=server.url, timeout=5) as self.agent.client:
                    with contextlib.suppress(httpx.TransportError, AssertionError):
                        await self.agent.heartbeat()
                        await self.agent.obey()
            await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def running(self, users: int = 3) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.obey())]
        tasks += [asyncio.create_task(self.user(number)) for number in range(users)]
        try:
            yield
        finally:
            self.ending = True
            await asyncio.gather(*tasks)


async def _load(replicas: Replicas) -> Load:
    admin = replicas.servers[0].admin_headers
    async with httpx.AsyncClient(base_url=replicas.servers[0].url, timeout=10) as client:
        fleet = Fleet(client=client, admin=admin)
        await fleet.image()
        agent = await fleet.host("h1", gpus=GPUS, cpus=1000, memory_bytes=2**45)
    return Load(replicas=replicas, admin=admin, agent=agent)


async def _until(true: Callable[[], object], within_s: float) -> float:
    """Seconds until it was true."""
    began = time.monotonic()
    while not await asyncio.to_thread(true):
        assert time.monotonic() < began + within_s, f"not within {within_s:g} s"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def _assert_nothing_lost_or_doubled(database: Database, load: Load) -> None:
    async with database.sessions() as db:
        await assert_invariants(db)
        rows = {row.name: row.id for row in await db.execute(text("SELECT name, id FROM environments"))}
    assert load.ledger, "the load made nothing"
    assert {key: rows.get(key) for key in load.ledger} == load.ledger
    for key, made in list(load.ledger.items())[:5]:
        spec = {"name": key, "image": "base", "gpus": 1, "cpus": 1, "memory_bytes": 2**30}
        again = await load.ask("POST", "/v1/environments", load.admin | {"Idempotency-Key": key}, spec)
        assert (again.status_code, again.json()["id"]) == (201, made)


@pytest.mark.timeout(180)
async def test_leader_paused_then_another_killed_under_load_loses_and_doubles_nothing(
    replicas: Replicas, database: Database
) -> None:
    first = replicas.add()
    await _until(lambda: replicas.leader() is first, TAKEOVER_S)
    second = replicas.add()
    load = await _load(replicas)
    async with load.running():
        await asyncio.sleep(1)
        os.kill(first.pid, signal.SIGSTOP)
        replicas.servers = [second]
        paused_s = await _until(lambda: replicas.leader() is second, TAKEOVER_S)
        term = await _term(database)
        os.kill(first.pid, signal.SIGCONT)
        replicas.servers = [first, second]
        await _until(lambda: "leadership_lost" in first.log.read_text(), TAKEOVER_S)
        assert await _term(database) == term, "the woken leader wrote nothing"
        second.kill()
        replicas.servers = [first]
        killed_s = await _until(lambda: replicas.leader() is first, TAKEOVER_S)
        await asyncio.sleep(1)
    print(
        f"takeover after a pause {paused_s:.1f} s, after a kill {killed_s:.1f} s; {len(load.ledger)} creates"
    )
    await _assert_nothing_lost_or_doubled(database, load)
    assert await _term(database) == term + 1


async def _term(database: Database) -> int:
    async with database.sessions() as db:
        return int(await db.scalar(text("SELECT term FROM leadership WHERE name = 'loops'")) or 0)


async def test_leader_paused_inside_a_transaction_is_replaced_in_time(database: Database) -> None:
    """Its lock on the leadership's row would outlive its lease."""
    paused, other = Candidate("loops"), Candidate("loops")
    async with database.sessions() as db:
        assert await paused.acquire(db)
        await db.commit()
    async with database.sessions() as stuck:
        await paused.fence(stuck)
        began = time.monotonic()
        while other.term is None:
            with contextlib.suppress(Exception):
                async with database.sessions() as db:
                    await other.acquire(db)
                    await db.commit()
            assert time.monotonic() < began + TAKEOVER_S
            await asyncio.sleep(leadership.RENEW_S)
        await stuck.invalidate()


async def test_replica_killed_inside_a_transaction_leaves_neither_rows_nor_locks(
    replicas: Replicas, database: Database
) -> None:
    healthy = replicas.add()
    load = await _load(replicas)
    doomed = replicas.add(REMOTEGPU_CRASH_AT="before_commit")
    spec = {"name": "one", "image": "base", "gpus": GPUS, "cpus": 1, "memory_bytes": 2**30}
    headers = load.admin | {"Idempotency-Key": "one"}
    async with httpx.AsyncClient(base_url=doomed.url, timeout=10) as client:
        with pytest.raises(httpx.TransportError):
            await client.post("/v1/environments", json=spec, headers=headers)
    assert doomed.wait_ended() == 137
    replicas.servers = [healthy]
    began = time.monotonic()
    answer = await load.ask("POST", "/v1/environments", headers, spec)
    assert (answer.status_code, answer.json()["status"]) == (201, "starting")
    assert time.monotonic() - began < 5
    async with database.sessions() as db:
        await assert_invariants(db)


@pytest.fixture
def own_cluster() -> Iterator[EmbeddedPostgres]:
    """One that may crash, and so must be durable."""
    folder = Path(tempfile.mkdtemp(prefix="remotegpu-crash-"))
    folder.chmod(0o755)
    try:
        yield embedded_postgres.ensure_running(folder)
    finally:
        embedded_postgres.stop(folder)
        shutil.rmtree(folder)


@pytest.mark.timeout(180)
async def test_database_crashes_under_load_and_keeps_every_acknowledged_write(
    own_cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    own_cluster.ensure_database("crash")
    replicas = Replicas(tmp_path, own_cluster.url("crash"))
    (tmp_path / "key").write_text(Fernet.generate_key().decode())
    database = connect(replicas.url, pool_size=2)
    try:
        for _ in range(2):
            replicas.add()
        load = await _load(replicas)
        async with load.running():
            for _ in range(3):
                await asyncio.sleep(1.5)
                await asyncio.to_thread(_crash, own_cluster)
            await asyncio.sleep(2)
        print(f"{len(load.ledger)} creates over 3 crashes, the slowest took {load.slowest_s:.1f} s")
        assert load.slowest_s < 30
        await _assert_nothing_lost_or_doubled(database, load)
    finally:
        await database.close()
        for server in replicas.servers:
            server.stop()


def _crash(cluster: EmbeddedPostgres) -> None:
    """What ``pg_ctl stop -m immediate`` does, and a second later a new start with recovery."""
    running = embedded_postgres.status(cluster.data_dir)
    assert running is not None
    os.kill(running.pid, signal.SIGQUIT)
    deadline = time.monotonic() + 10
    while embedded_postgres.status(cluster.data_dir) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    embedded_postgres.ensure_running(cluster.data_dir)
