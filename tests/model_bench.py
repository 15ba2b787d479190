"""The ground of ``test_model.py``: clones of a filled database, and how to ask the app."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx
from cryptography.fernet import Fernet
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from reference_model import Env, Gpus, Model
from sqlalchemy import text

from remotegpu_server import leadership
from remotegpu_server.app import create_app
from remotegpu_server.deps import ON_BEHALF_OF
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.queue import order
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors

USERS = {"ada": "default", "bob": "default", "eve": "other"}
TEAM = "team"
"""A workspace of ada, with bob as a member. Everybody has an own one besides, named after the person."""
WORKSPACES = {"ada": ("own:ada", TEAM), "bob": ("own:bob", TEAM), "eve": ("own:eve",)}
MACHINES = {"h1": 2, "h2": 3}
KEY = Fernet.generate_key().decode()
T = TypeVar("T")

_STATE = text(
    """
    SELECT e.id, e.status, e.desired, e.generation, e.reason, h.name AS host,
        e.status = 'running' AND e.preempt_at IS NOT NULL AS announced,
        array_agg(g.uuid) FILTER (WHERE g.uuid IS NOT NULL) AS uuids
    FROM environments e
    LEFT JOIN placements p ON p.environment_id = e.id AND p.released_at IS NULL
    LEFT JOIN hosts h ON h.id = p.host_id
    LEFT JOIN allocations a ON a.placement_id = p.id AND a.released_at IS NULL
    LEFT JOIN gpus g ON g.id = a.gpu_id
    GROUP BY e.id, h.name
    """
)

_TASKS = text(
    """
    SELECT t.id, t.status, t.generation AS number, t.retries, t.reason, held.*
    FROM tasks t LEFT JOIN LATERAL (
        SELECT a.id AS attempt, a.status AS attempt_status, a.stop_reason AS told, h.name AS host, (
            SELECT array_agg(g.uuid) FROM allocations l JOIN gpus g ON g.id = l.gpu_id
            WHERE l.placement_id = p.id AND l.released_at IS NULL
        ) AS uuids
        FROM attempts a JOIN placements p ON p.attempt_id = a.id AND p.released_at IS NULL
        JOIN hosts h ON h.id = p.host_id WHERE a.task_id = t.id
    ) held ON true
    """
)


@dataclass
class Bench:
    """What all examples share: a cluster with a filled database to clone, and an event loop."""

    cluster: EmbeddedPostgres
    template: str
    runner: asyncio.Runner
    agents: dict[str, HollowAgent] = field(default_factory=dict)
    workspaces: dict[str, str] = field(default_factory=dict)
    """Ids by the names that the model uses."""
    gpus: dict[str, str] = field(default_factory=dict)
    """Ids by UUID."""
    hub: str = ""
    admin: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    reached: Counter[str] = field(default_factory=Counter)
    """How often the walks came to what they are there for."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def fill(self) -> None:
        """People, their team, hosts: in the database that every example clones."""
        app = _app(self, self.template)
        actors = Actors(app.state.database)
        async with _client(app) as client:
            admin = await actors.admin()
            self.admin, self.hub = admin.secret, await actors.hub()
            fleet = Fleet(client=client, admin=admin.headers)
            await fleet.image()
            people = {name: await actors.user(name, customer=customer) for name, customer in USERS.items()}
            ada = people["ada"].headers
            answer = await client.post("/v1/workspaces", headers=ada, json={"name": "Team"})
            self.workspaces[TEAM] = answer.json()["id"]
            path = f"/v1/workspaces/{self.workspaces[TEAM]}/members"
            answer = await client.post(path, headers=ada, json={"user": "bob", "role": "member"})
            assert answer.status_code == 201, answer.text
            async with app.state.database.sessions() as db:
                for name, person in people.items():
                    found = text("SELECT id FROM workspaces WHERE personal_of = :user")
                    self.workspaces[f"own:{name}"] = await db.scalar(found, {"user": person.id})
            for name, gpus in MACHINES.items():
                self.agents[name] = await fleet.host(name, gpus=gpus, cpus=1000, memory_bytes=2**45)
                await self.agents[name].heartbeat()
            listed = await client.get("/v1/gpus", headers=admin.headers)
            self.gpus = {one["uuid"]: one["id"] for one in listed.json()["items"]}
        await app.state.database.close()


def _app(bench: Bench, database: str) -> FastAPI:
    url = bench.cluster.url(database)
    return create_app(Settings(database_url=url, secret_key=KEY, pool_size=3), run_loops=False)


def _client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://remotegpu.test")


class Clone:
    """One example: a fresh clone of the database, its app, its model, and the comparison of the two."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.name = f"model_{next(bench.numbers)}"
        bench.cluster.clone_database(bench.template, self.name)
        self.app = _app(bench, self.name)
        self.client = _client(self.app)
        self.agents = {
            name: replace(agent, client=self.client, gpus=list(agent.gpus))
            for name, agent in bench.agents.items()
        }
        health = {name: {one["uuid"]: "healthy" for one in agent.gpus} for name, agent in self.agents.items()}
        self.model = Model(customers=USERS, hosts={name: Gpus(known) for name, known in health.items()})
        self.work = bench.run(self._lead())

    async def _lead(self) -> Work:
        candidate = leadership.Candidate("loops")
        async with self.app.state.database.sessions() as db:
            assert await candidate.acquire(db)
            await db.execute(text("UPDATE leadership SET expires_at = now() + interval '1 hour'"))
            await db.commit()
        return Work(
            database=self.app.state.database,
            settings=self.app.state.settings,
            vault=self.app.state.vault,
            candidate=candidate,
            leading_since=time.monotonic() - 3600,
        )

    def close(self) -> None:
        self.bench.run(self._close())
        self.bench.cluster.drop_database(self.name)

    async def _close(self) -> None:
        await self.client.aclose()
        await self.app.state.database.close()

    # How to ask.

    def ask_as(self, user: str, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.bench.hub}", ON_BEHALF_OF: user}
        return self.bench.run(self.client.request(method, path, json=body, headers=headers))

    def ask_as_admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.bench.admin}"}
        return self.bench.run(self.client.request(method, path, json=body, headers=headers))

    def sql(self, statement: str, **values: Any) -> None:
        async def change() -> None:
            async with self.app.state.database.sessions() as db:
                await db.execute(text(statement), values)
                await db.commit()

        self.bench.run(change())

    # The comparison.

    def settle(self, *, places: bool = False) -> None:
        """Take over the server's choice of host and GPUs if this step may place; the rest must be equal."""
        rows, tasks = self.bench.run(self._look()), self.bench.run(self._look_at_tasks())
        if places:
            for row in sorted([*rows, *tasks], key=lambda row: self.model.ask(row.id).order):
                self._take_over(row)
        assert self._tasks_of(tasks) == {
            key: (
                task.status,
                task.number,
                task.retries,
                {name: (one.status, one.told, one.host, one.uuids) for name, one in task.attempts.items()},
            )
            for key, task in self.model.tasks.items()
        }
        real = {
            row.id: (row.status, row.desired, row.generation, row.host, frozenset(row.uuids or ()))
            for row in rows
        }
        wanted = {
            key: (env.status, env.desired, env.generation, env.host, env.uuids)
            for key, env in self.model.envs.items()
        }
        assert real == wanted

    def _take_over(self, row: Any) -> None:
        """A choice of the server's that the model does not know."""
        env, task = self.model.envs.get(row.id), self.model.tasks.get(row.id)
        uuids = frozenset(row.uuids or ())
        if env is not None and row.host is not None and env.host is None:
            self.model.grant(row.id, row.host, uuids)
            self._count(env)
        elif task is not None and row.attempt is not None and row.attempt not in task.attempts:
            self.model.grant_attempt(row.id, row.attempt, row.host, uuids)
            self.bench.reached["start"] += 1
            self.bench.reached["start of a task"] += 1
            self.bench.reached["another attempt"] += task.number > 1

    def _tasks_of(self, rows: list[Any]) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        for row in rows:
            known = found.setdefault(row.id, (row.status, row.number, row.retries, {}))
            if row.attempt is not None:
                known[3][row.attempt] = (row.attempt_status, row.told, row.host, frozenset(row.uuids or ()))
        return found

    def _count(self, env: Env) -> None:
        reached = self.bench.reached
        reached["start"] += 1
        reached["start of a share"] += env.part < 1
        reached["start beside another share"] += (
            env.part < 1 and self.model.taken()[min(env.uuids)] > env.part
        )
        reached["start in a reservation"] += env.reservation is not None
        reached["start around a reservation"] += bool(env.gpus and self.model.promised_to_others(env))

    def preempted(self) -> None:
        """Take over whom the server chose to warn, to spare and to stop, where the rules allow it."""
        for row in self.bench.run(self._look()):
            env = self.model.envs[row.id]
            if row.announced and not env.announced:
                assert self.model.may_preempt(env), "warned, and nobody needs it"
                env.announced = True
                self.bench.reached["warning of preemption"] += 1
            elif env.status == "running" and row.status == "running":
                env.announced = row.announced
            elif env.status == "running" and row.status == "stopping":
                assert self.model.may_preempt(env), "stopped, and nobody needs it"
                self.model.preempt(env)
                self.bench.reached["preemption"] += 1
        self.bench.reached["return of the preempted"] += sum(
            env.preempted and env.status == "stopped" for env in self.model.envs.values()
        )
        self.model.queue_preempted_again()

    async def _look(self) -> list[Any]:
        async with self.app.state.database.sessions() as db:
            await assert_invariants(db)
            return list((await db.execute(_STATE)).all())

    async def _look_at_tasks(self) -> list[Any]:
        async with self.app.state.database.sessions() as db:
            return list((await db.execute(_TASKS)).all())

    def queue(self) -> list[tuple[str, str]]:
        """Who waits, with the reason, in the server's own order."""

        async def look() -> list[tuple[str, str]]:
            async with self.app.state.database.sessions() as db:
                rows = [*await db.execute(_STATE), *await db.execute(_TASKS)]
                reasons = {row.id: row.reason for row in rows}
                return [(key, reasons[key]) for key in await order.waiting_ids(db)]

        return self.bench.run(look())
