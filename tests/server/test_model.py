"""A random walk over everything at once, through the HTTP API, on a real PostgreSQL, against a model.

Hypothesis chooses the steps; ``tests/reference_model.py`` says what must come of each; the invariants are
checked after every one. ``REMOTEGPU_EXAMPLES=500`` walks longer, with fresh randomness (docs/testing.md).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
import pytest
from cryptography.fernet import Fernet
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from hypothesis import HealthCheck, Phase, settings, strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reference_model import Gpus, Model
from sqlalchemy import text

from remotegpu_server import leadership
from remotegpu_server.app import create_app
from remotegpu_server.deps import ON_BEHALF_OF
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.environments import loop as queue
from remotegpu_server.hosts import loop as liveness
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors

EXAMPLES = int(os.environ.get("REMOTEGPU_EXAMPLES", "0"))
STEPS = 50
USERS = {"ada": "default", "bob": "default", "eve": "other"}
SUBJECTS = [("user", "ada"), ("user", "bob"), ("customer", "default"), ("customer", "other")]
MACHINES = {"h1": 2, "h2": 3}
KEY = Fernet.generate_key().decode()
T = TypeVar("T")

_STATE = text(
    """
    SELECT e.id, e.status, e.desired, e.generation, h.name AS host,
        array_agg(g.uuid) FILTER (WHERE g.uuid IS NOT NULL) AS uuids
    FROM environments e
    LEFT JOIN placements p ON p.environment_id = e.id AND p.released_at IS NULL
    LEFT JOIN hosts h ON h.id = p.host_id
    LEFT JOIN allocations a ON a.placement_id = p.id AND a.released_at IS NULL
    LEFT JOIN gpus g ON g.id = a.gpu_id
    GROUP BY e.id, h.name
    """
)


@dataclass
class Bench:
    """What all examples share: a cluster with a filled database to clone, and an event loop."""

    cluster: EmbeddedPostgres
    template: str
    runner: asyncio.Runner
    agents: dict[str, HollowAgent]
    hub: str
    admin: str
    numbers: Iterator[int]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)


@pytest.fixture(scope="module")
def bench(cluster: EmbeddedPostgres, template: str) -> Iterator[Bench]:
    name = "template_model"
    cluster.clone_database(template, name)
    with asyncio.Runner() as runner:
        made = Bench(cluster, name, runner, {}, "", "", itertools.count(1))
        runner.run(_fill(made))
        yield made


def _app(bench: Bench, database: str) -> FastAPI:
    url = bench.cluster.url(database)
    return create_app(Settings(database_url=url, secret_key=KEY, pool_size=3), run_loops=False)


def _client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://remotegpu.test")


async def _fill(bench: Bench) -> None:
    app = _app(bench, bench.template)
    actors = Actors(app.state.database)
    async with _client(app) as client:
        admin = await actors.admin()
        bench.admin, bench.hub = admin.secret, await actors.hub()
        fleet = Fleet(client=client, admin=admin.headers)
        await fleet.image()
        for user, customer in USERS.items():
            await actors.user(user, customer=customer)
        for name, gpus in MACHINES.items():
            bench.agents[name] = await fleet.host(name, gpus=gpus, cpus=1000, memory_bytes=2**45)
            await bench.agents[name].heartbeat()
    await app.state.database.close()


class Walk(RuleBasedStateMachine):
    """One example: a fresh clone, its app, its model."""

    bench: Bench

    @initialize()
    def begin(self) -> None:
        self.name = f"model_{next(self.bench.numbers)}"
        self.bench.cluster.clone_database(self.bench.template, self.name)
        self.app = _app(self.bench, self.name)
        self.client = _client(self.app)
        self.admin = {"Authorization": f"Bearer {self.bench.admin}"}
        self.fleet = Fleet(client=self.client, admin=self.admin)
        self.agents = {
            name: replace(agent, client=self.client, gpus=list(agent.gpus))
            for name, agent in self.bench.agents.items()
        }
        self.model = Model(
            customers=USERS,
            hosts={
                name: Gpus({one["uuid"]: "healthy" for one in agent.gpus})
                for name, agent in self.agents.items()
            },
        )
        self.work = self.bench.run(self._lead())
        self.names = itertools.count(1)
        self.transcript: list[tuple[str, dict[str, Any]]] = []

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

    def teardown(self) -> None:
        if hasattr(self, "app"):
            self.bench.run(self._close())
            self.bench.cluster.drop_database(self.name)

    async def _close(self) -> None:
        await self.client.aclose()
        await self.app.state.database.close()

    # Steps of people.

    @rule(
        user=strategies.sampled_from(sorted(USERS)),
        gpus=strategies.integers(0, 4),
        waits=strategies.booleans(),
    )
    def create(self, user: str, gpus: int, waits: bool) -> None:
        answer = self._as(user, "POST", "/v1/environments", self._spec(gpus) | {"queue": waits})
        model = self.model
        if not model.may_act(user):
            self._refused(answer, 403, "account_suspended")
        elif not model.within_quota(user, gpus):
            self._refused(answer, 409, "quota_exceeded")
        elif not model.ever_fits(gpus):
            self._refused(answer, 422, "unsatisfiable")
        elif answer.status_code == 503:
            self._refused(answer, 503, "no_capacity")
            assert not waits
            assert not self._must_start(gpus)
        else:
            assert answer.status_code == 201, answer.text
            model.create(answer.json()["id"], user, gpus)
            self._settle(places=True)
            started = model.envs[answer.json()["id"]].host is not None
            assert started or waits
            assert started or not self._must_start(gpus, besides=1)
        self._settle()

    def _spec(self, gpus: int) -> dict[str, Any]:
        return {
            "name": f"e{next(self.names)}",
            "image": "base",
            "gpus": gpus,
            "cpus": 1,
            "memory_bytes": 2**30,
        }

    def _must_start(self, gpus: int, besides: int = 0) -> bool:
        """Nothing waits and there is room: only a start is right."""
        waiting = sum(env.status == "pending" for env in self.model.envs.values())
        return waiting <= besides and bool(self.model.fits(gpus))

    @precondition(lambda self: self.model.envs)
    @rule(data=strategies.data())
    def start(self, data: strategies.DataObject) -> None:
        key = self._pick(data)
        env, model = self.model.envs[key], self.model
        answer = self._as(env.owner, "POST", f"/v1/environments/{key}:start", {})
        if not model.may_act(env.owner):
            self._refused(answer, 403, "account_suspended")
        elif env.status == "deleted":
            self._refused(answer, 404, "not_found")
        elif model.start(key) == "conflict":
            self._refused(answer, 409, "state_conflict")
        elif model.start(key) == "ok":
            assert answer.status_code == 200, answer.text
        elif not model.within_quota(env.owner, env.gpus):
            self._refused(answer, 409, "quota_exceeded")
        elif not model.ever_fits(env.gpus):
            self._refused(answer, 422, "unsatisfiable")
        else:
            assert answer.status_code == 200, answer.text
            model.again(key)
            self._settle(places=True)
        self._settle()

    @precondition(lambda self: self.model.envs)
    @rule(data=strategies.data(), verb=strategies.sampled_from(["stop", "delete"]))
    def end(self, data: strategies.DataObject, verb: str) -> None:
        key = self._pick(data)
        env = self.model.envs[key]
        if verb == "stop":
            answer = self._as(env.owner, "POST", f"/v1/environments/{key}:stop")
        else:
            answer = self._as(env.owner, "DELETE", f"/v1/environments/{key}")
        if not self.model.may_act(env.owner) and verb == "delete":
            assert answer.status_code == 403, answer.text
        elif env.status == "deleted":
            self._refused(answer, 404, "not_found")
        else:
            assert answer.status_code in (200, 204), answer.text
            self.model.end(key, "stopped" if verb == "stop" else "deleted")
        self._settle()

    # Steps of agents.

    @precondition(lambda self: self.model.envs)
    @rule(
        data=strategies.data(),
        seen=strategies.sampled_from(
            ["absent", "running", "pulling", "starting", "exited", "failed", "stopping", "unknown"]
        ),
        older=strategies.sampled_from([0, 0, 0, 0, 1]),
        lost_epoch=strategies.sampled_from([False, False, False, True]),
        twice=strategies.booleans(),
    )
    def report(
        self, data: strategies.DataObject, seen: str, older: int, lost_epoch: bool, twice: bool
    ) -> None:
        key = self._pick(data)
        env = self.model.envs[key]
        host = env.host or data.draw(strategies.sampled_from(sorted(MACHINES)), "host")
        agent = self.agents[host]
        body = {
            "workload_id": key,
            "generation": max(env.generation - older, 1),
            "observed": seen,
            "epoch": agent.epoch - lost_epoch,
            **({"address": "http://192.0.2.1:4000"} if seen == "running" else {}),
        }
        for _ in range(1 + twice):
            self._say(host, body)
        self.transcript.append((host, body))

    @precondition(lambda self: self.transcript)
    @rule(data=strategies.data())
    def late_report(self, data: strategies.DataObject) -> None:
        """Any earlier message arrives once more."""
        self._say(*data.draw(strategies.sampled_from(self.transcript), "message"))

    def _say(self, host: str, body: dict[str, Any]) -> None:
        agent, key, seen = self.agents[host], body["workload_id"], body["observed"]
        answer = self.bench.run(
            self.client.put(f"/v1/agent/workloads/{key}/observed", json=body, headers=agent.headers)
        )
        if body["epoch"] != agent.epoch:
            self._refused(answer, 409, "epoch_stale")
        elif seen == "unknown" or self.model.envs[key].host != host:
            assert answer.status_code in (204, 403, 409), (
                answer.text
            )  # changes nothing, which is checked below
        elif self.model.report(key, host, seen, body["generation"]):
            assert answer.status_code == 204, answer.text
        else:
            self._refused(answer, 409, "generation_stale")
        self._settle()

    @rule(host=strategies.sampled_from(sorted(MACHINES)))
    def silence(self, host: str) -> None:
        """Time passes on the database's clock without a word of this host."""
        self._sql(
            "UPDATE hosts SET last_heartbeat_at ="
            " CASE name WHEN :host THEN now() - interval '1 hour' ELSE now() END",
            host=host,
        )
        self.bench.run(liveness.judge_silence(self.work))
        self.model.silence(host)
        self._settle()

    @rule(host=strategies.sampled_from(sorted(MACHINES)), sick=strategies.sets(strategies.integers(0, 2)))
    def heartbeat(self, host: str, sick: set[int]) -> None:
        """Heard again, and what it says about its GPUs."""
        agent = self.agents[host]
        gpus = [
            {"uuid": one["uuid"], "metrics": {}, "unhealthy_reason": "XID 79" if index in sick else None}
            for index, one in enumerate(agent.gpus)
        ]
        answer = self.bench.run(agent.heartbeat(gpus=gpus))
        assert answer.status_code == 200, answer.text
        self.model.back(host)
        health = self.model.hosts[host].health
        for index, one in enumerate(agent.gpus):
            if health[one["uuid"]] == "healthy" and index in sick:
                health[one["uuid"]] = "unhealthy"  # and nothing but a check or an admin puts it back
        self._settle()

    @rule(
        host=strategies.sampled_from(sorted(MACHINES)),
        reboot=strategies.booleans(),
        lost=strategies.sets(strategies.integers(0, 2), max_size=1),
    )
    def register(self, host: str, reboot: bool, lost: set[int]) -> None:
        """The agent, or its whole machine, starts anew; a GPU may have gone or come back."""
        agent, model = self.agents[host], self.model
        everything = self.bench.agents[host].gpus
        agent.gpus = [one for index, one in enumerate(everything) if index not in lost]
        if reboot:
            agent.boot_id = f"boot-{model.hosts[host].boots + 1}"
            model.reboot(host)
        else:
            model.back(host)
        answer = self.bench.run(agent.register())
        assert answer.status_code == 201, answer.text
        health = model.hosts[host].health
        there = {one["uuid"] for one in agent.gpus}
        for uuid, known in health.items():
            if uuid not in there:
                health[uuid] = "missing"
            elif known == "missing":
                health[uuid] = "unhealthy"
        self._settle()

    # Steps of admins, and of the server itself.

    @rule(host=strategies.sampled_from(sorted(MACHINES)), cordoned=strategies.booleans())
    def cordon(self, host: str, cordoned: bool) -> None:
        verb = "cordon" if cordoned else "uncordon"
        answer = self._as_admin("POST", f"/v1/hosts/{host}:{verb}")
        assert answer.status_code == 200, answer.text
        self.model.hosts[host].cordoned = cordoned
        self._settle()

    @rule(
        subject=strategies.sampled_from(SUBJECTS),
        limit=strategies.one_of(strategies.none(), strategies.integers(0, 4)),
    )
    def quota(self, subject: tuple[str, str], limit: int | None) -> None:
        kind, name = subject
        answer = self._as_admin("PUT", f"/v1/quotas/{kind}/{name}", {"limits": {"gpus": limit}})
        assert answer.status_code == 200, answer.text
        self.model.limits[name] = limit
        self._settle()

    @rule(
        subject=strategies.sampled_from([("users", "ada"), ("users", "eve"), ("customers", "other")]),
        verb=strategies.sampled_from(["suspend", "resume", "resume"]),
    )
    def suspend(self, subject: tuple[str, str], verb: str) -> None:
        kind, name = subject
        answer = self._as_admin("POST", f"/v1/{kind}/{name}:{verb}")
        assert answer.status_code == 200, answer.text
        (self.model.suspended.add if verb == "suspend" else self.model.suspended.discard)(name)
        self._settle()

    @rule()
    def tick(self) -> None:
        """One pass of the queue: what is free goes to who may have it, and the head is not starved."""
        self.bench.run(queue.place_pending(self.work))
        self.model.withdraw_suspended()
        self._settle(places=True)
        waiting = sorted(
            (
                env
                for env in self.model.envs.values()
                if env.status == "pending" and self.model.within_quota(env.owner, env.gpus)
            ),
            key=lambda env: env.order,
        )
        if waiting and self.model.startable():
            assert waiting[0] not in self.model.startable(), f"the head could start: {waiting[0]}"

    # The comparison.

    def _settle(self, *, places: bool = False) -> None:
        """Take over the server's choice of host and GPUs if this step may place; the rest must be equal."""
        rows = self.bench.run(self._look())
        if places:
            for row in sorted(rows, key=lambda row: self.model.envs[row.id].order):
                if row.host is not None and self.model.envs[row.id].host is None:
                    self.model.grant(row.id, row.host, frozenset(row.uuids or ()))
        real = {
            row.id: (row.status, row.desired, row.generation, row.host, frozenset(row.uuids or ()))
            for row in rows
        }
        wanted = {
            key: (env.status, env.desired, env.generation, env.host, env.uuids)
            for key, env in self.model.envs.items()
        }
        assert real == wanted

    async def _look(self) -> list[Any]:
        async with self.app.state.database.sessions() as db:
            await assert_invariants(db)
            return list((await db.execute(_STATE)).all())

    def _pick(self, data: strategies.DataObject) -> str:
        return data.draw(strategies.sampled_from(list(self.model.envs)), "environment")

    def _as(self, user: str, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.bench.hub}", ON_BEHALF_OF: user}
        return self.bench.run(self.client.request(method, path, json=body, headers=headers))

    def _as_admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        return self.bench.run(self.client.request(method, path, json=body, headers=self.admin))

    def _sql(self, statement: str, **values: Any) -> None:
        async def change() -> None:
            async with self.app.state.database.sessions() as db:
                await db.execute(text(statement), values)
                await db.commit()

        self.bench.run(change())

    def _refused(self, answer: httpx.Response, status: int, code: str) -> None:
        assert (answer.status_code, answer.json().get("error")) == (status, code), answer.text


@pytest.mark.timeout(600 if not EXAMPLES else 36000)
def test_random_walks_agree_with_the_model(bench: Bench) -> None:
    class Here(Walk):
        pass

    Here.bench = bench
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES or 30,
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
