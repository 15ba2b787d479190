"""Two requests cut at every statement that locks or writes, in every order of two cuts; three at random cuts.

The first runs to its cut, then the second to its own, then both go on. A cut is a place before a statement
that takes a lock, writes, or commits; which they are is found by watching the request once. Where one waits
for a lock of the other, it waits: a schedule says who may begin a statement, never that it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text
from sqlalchemy.util import await_only

from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import Actors

BLOCKED_S = 0.1
"""After this long without a new statement a request is taken to wait for a lock."""
CUTS = int(os.environ.get("REMOTEGPU_CUTS", "6"))
"""Cuts of one request that are tried, evenly thinned; 50 tries all of them."""
_SPLITS = ("INSERT", "UPDATE", "DELETE", "WITH")
_current: ContextVar[Request | None] = ContextVar("request_under_test", default=None)
Ask = Callable[[], Awaitable[httpx.Response]]


@dataclass(eq=False)
class Request:
    """One of the two, and where it is to pause."""

    cut: int
    passed: int = 0
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def point(self) -> None:
        if self.passed == self.cut:
            self.paused.set()
            await self.go.wait()
        self.passed += 1

    async def until_cut(self, task: asyncio.Task[httpx.Response]) -> None:
        """It has paused, ended, or waits for the other."""
        waiting = asyncio.create_task(self.paused.wait())
        await asyncio.wait({waiting, task}, timeout=BLOCKED_S * 5, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()


@contextlib.contextmanager
def _cutting(app: FastAPI) -> Iterator[None]:
    def before(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        request = _current.get()
        start = statement.lstrip().upper()
        if request is not None and (start.startswith(_SPLITS) or "FOR " in start or "advisory" in statement):
            await_only(request.point())

    def commit(_connection: Any) -> None:
        request = _current.get()
        if request is not None:
            await_only(request.point())

    engine = app.state.database.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", before)
    sa.event.listen(engine, "commit", commit)
    try:
        yield
    finally:
        sa.event.remove(engine, "before_cursor_execute", before)
        sa.event.remove(engine, "commit", commit)


async def _run(request: Request, ask: Ask) -> httpx.Response:
    _current.set(request)
    return await ask()


async def _points(app: FastAPI, ask: Ask) -> list[int]:
    """Where the request can be cut; 0 is before its first such statement."""
    request = Request(cut=-1)
    with _cutting(app):
        await asyncio.create_task(_run(request, ask))
    step = max(1, round(request.passed / CUTS))
    return list(range(0, request.passed, step))


async def _both(app: FastAPI, cuts: tuple[int, int], asks: tuple[Ask, Ask]) -> list[httpx.Response]:
    first, second = Request(cuts[0]), Request(cuts[1])
    with _cutting(app):
        one = asyncio.create_task(_run(first, asks[0]))
        await first.until_cut(one)
        two = asyncio.create_task(_run(second, asks[1]))
        await second.until_cut(two)
        first.go.set()
        await asyncio.wait({one}, timeout=BLOCKED_S)
        second.go.set()
        return list(await asyncio.gather(one, two))


@dataclass
class Scene:
    """What a scenario works with."""

    app: FastAPI
    fleet: Fleet
    agent: HollowAgent
    ada: dict[str, str]
    bob: dict[str, str]
    numbers: Iterator[int] = field(default_factory=itertools.count)
    key: str = ""
    workspace: str = ""

    async def create(self, headers: dict[str, str], **spec: Any) -> httpx.Response:
        return await self.fleet.create(
            headers, f"n{next(self.numbers)}", **({"gpus": 1, "queue": False} | spec)
        )

    async def scalar(self, query: str, **values: Any) -> Any:
        async with self.app.state.database.sessions() as db:
            return await db.scalar(text(query), values)


@pytest.fixture
async def scene(app: FastAPI, fleet: Fleet, actors: Actors) -> Scene:
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    return Scene(app, fleet, agent, ada.headers, bob.headers)


class Scenario:
    """Two requests that meet, what each may answer, and what must hold afterwards."""

    allowed: frozenset[tuple[int, int]]

    async def prepare(self, scene: Scene) -> None:
        """Before every round."""

    def asks(self, scene: Scene) -> tuple[Ask, Ask]:
        raise NotImplementedError

    async def check(self, scene: Scene, answers: list[httpx.Response]) -> None:
        """Beyond the statuses and the invariants."""


class GrantAndGrant(Scenario):
    """Two users want the last GPU."""

    allowed = frozenset({(201, 503), (503, 201)})

    def asks(self, scene: Scene) -> tuple[Ask, Ask]:
        return (lambda: scene.create(scene.ada), lambda: scene.create(scene.bob))


class GrantAndLowerQuota(Scenario):
    """The limit falls to nothing while a GPU is granted under it."""

    allowed = frozenset({(201, 200), (409, 200)})

    async def prepare(self, scene: Scene) -> None:
        await scene.fleet.limit("user", "ada", gpus=1)

    def asks(self, scene: Scene) -> tuple[Ask, Ask]:
        body = {"limits": {"gpus": 0}}
        return (
            lambda: scene.create(scene.ada),
            lambda: scene.fleet.client.put("/v1/quotas/user/ada", headers=scene.fleet.admin, json=body),
        )


class CancelAndStart(Scenario):
    """A stopped environment is deleted while it is started."""

    allowed = frozenset({(204, 200), (204, 404), (204, 409)})

    async def prepare(self, scene: Scene) -> None:
        scene.key = (await scene.create(scene.ada)).json()["id"]
        await scene.fleet.act(scene.ada, scene.key, "stop")
        await scene.agent.obey()

    def asks(self, scene: Scene) -> tuple[Ask, Ask]:
        return (
            lambda: scene.fleet.client.delete(f"/v1/environments/{scene.key}", headers=scene.ada),
            lambda: scene.fleet.act(scene.ada, scene.key, "start"),
        )

    async def check(self, scene: Scene, answers: list[httpx.Response]) -> None:
        await scene.agent.obey()
        assert (
            await scene.scalar("SELECT status FROM environments WHERE id = :key", key=scene.key) == "deleted"
        )


class ArchiveAndCreate(Scenario):
    """A workspace is archived while something starts in it: never both."""

    allowed = frozenset({(200, 409), (409, 201)})

    async def prepare(self, scene: Scene) -> None:
        name = f"Team {next(scene.numbers)}"
        answer = await scene.fleet.client.post("/v1/workspaces", headers=scene.ada, json={"name": name})
        scene.workspace = answer.json()["id"]

    def asks(self, scene: Scene) -> tuple[Ask, Ask]:
        return (
            lambda: scene.fleet.client.post(f"/v1/workspaces/{scene.workspace}:archive", headers=scene.ada),
            lambda: scene.create(scene.ada, workspace=scene.workspace),
        )


class SuspendAndCreate(Scenario):
    """The account is suspended while it gets a GPU. Its token may end first."""

    allowed = frozenset({(200, 201), (200, 401), (200, 403)})

    async def prepare(self, scene: Scene) -> None:
        await scene.fleet.client.post("/v1/users/ada:resume", headers=scene.fleet.admin)
        hub = await Actors(scene.app.state.database).hub()
        scene.ada = {"Authorization": f"Bearer {hub}", "X-RemoteGPU-On-Behalf-Of": "ada"}

    def asks(self, scene: Scene) -> tuple[Ask, Ask]:
        return (
            lambda: scene.fleet.client.post("/v1/users/ada:suspend", headers=scene.fleet.admin),
            lambda: scene.create(scene.ada),
        )

    async def check(self, scene: Scene, answers: list[httpx.Response]) -> None:
        late = await scene.create(scene.ada, gpus=0)
        assert late.status_code == 403, late.text


class CordonAndPlace(Scenario):
    """A host is cordoned while something is placed on it."""

    allowed = frozenset({(200, 201), (200, 503)})

    async def prepare(self, scene: Scene) -> None:
        await scene.fleet.client.post("/v1/hosts/h1:uncordon", headers=scene.fleet.admin)

    def asks(self, scene: Scene) -> tuple[Ask, Ask]:
        return (
            lambda: scene.fleet.client.post("/v1/hosts/h1:cordon", headers=scene.fleet.admin),
            lambda: scene.create(scene.ada),
        )

    async def check(self, scene: Scene, answers: list[httpx.Response]) -> None:
        late = await scene.create(scene.bob, gpus=0)
        assert late.status_code == 503, late.text


class StopAndReport(Scenario):
    """The container fails while its owner stops it."""

    allowed = frozenset({(200, 204)})

    async def prepare(self, scene: Scene) -> None:
        scene.key = (await scene.create(scene.ada)).json()["id"]

    def asks(self, scene: Scene) -> tuple[Ask, Ask]:
        return (
            lambda: scene.fleet.act(scene.ada, scene.key, "stop"),
            lambda: scene.agent.observe(scene.key, "exited", exit_code=1),
        )

    async def check(self, scene: Scene, answers: list[httpx.Response]) -> None:
        await scene.agent.obey()
        status = await scene.scalar("SELECT status FROM environments WHERE id = :key", key=scene.key)
        assert status in ("stopped", "failed")


SCENARIOS = [
    GrantAndGrant, GrantAndLowerQuota, CancelAndStart, ArchiveAndCreate, SuspendAndCreate, CordonAndPlace,
    StopAndReport,
]  # fmt: skip


async def _clean(scene: Scene) -> None:
    """Everything stopped and proven gone."""
    async with scene.app.state.database.sessions() as db:
        keys = (await db.scalars(text("SELECT id FROM environments WHERE status <> 'deleted'"))).all()
    for key in keys:
        await scene.fleet.client.delete(f"/v1/environments/{key}", headers=scene.fleet.admin)
    await scene.agent.obey()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", SCENARIOS, ids=lambda kind: kind.__name__)
async def test_every_order_of_two_cuts_ends_well(scene: Scene, kind: type[Scenario]) -> None:
    scenario = kind()
    await scenario.prepare(scene)
    points = []
    for index in (0, 1):
        points.append(await _points(scene.app, scenario.asks(scene)[index]))
        await _clean(scene)
        await scenario.prepare(scene)
    seen = set()
    for cuts in itertools.product(*points):
        await _clean(scene)
        await scenario.prepare(scene)
        answers = await _both(scene.app, cuts, scenario.asks(scene))
        codes = (answers[0].status_code, answers[1].status_code)
        assert codes in scenario.allowed, (cuts, [answer.text for answer in answers])
        seen.add(codes)
        async with scene.app.state.database.sessions() as db:
            await assert_invariants(db)
        await scenario.check(scene, answers)
    print(f"{kind.__name__}: {len(points[0])} x {len(points[1])} orders, answers {sorted(seen)}")
    await _clean(scene)


ROUNDS = int(os.environ.get("REMOTEGPU_ROUNDS", "12"))
"""Rounds of three; a night takes thousands."""


def _mixed(scene: Scene) -> dict[str, Ask]:
    """Requests about one environment, its owner, its workspace and its host: children and their parents."""
    client, admin, ada = scene.fleet.client, scene.fleet.admin, scene.ada
    environment = f"/v1/environments/{scene.key}"
    no_gpu = {"limits": {"gpus": 0}}
    return {
        "create": lambda: scene.create(ada, gpus=0, workspace=scene.workspace),
        "create by another": lambda: scene.create(scene.bob),
        "start": lambda: scene.fleet.act(ada, scene.key, "start"),
        "stop": lambda: scene.fleet.act(ada, scene.key, "stop"),
        "delete": lambda: client.delete(environment, headers=ada),
        "report": lambda: scene.agent.observe(scene.key, "exited", exit_code=1),
        "lower quota": lambda: client.put("/v1/quotas/user/ada", headers=admin, json=no_gpu),
        "suspend": lambda: client.post("/v1/users/ada:suspend", headers=admin),
        "archive": lambda: client.post(f"/v1/workspaces/{scene.workspace}:archive", headers=admin),
        "cordon": lambda: client.post("/v1/hosts/h1:cordon", headers=admin),
    }


async def _new_round(scene: Scene) -> None:
    """Ada may hold one GPU; an environment of hers in a workspace of its own holds it, running."""
    client, admin = scene.fleet.client, scene.fleet.admin
    await client.post("/v1/users/ada:resume", headers=admin)
    await client.post("/v1/hosts/h1:uncordon", headers=admin)
    await scene.fleet.limit("user", "ada", gpus=1)
    name = f"Team {next(scene.numbers)}"
    made = await client.post("/v1/workspaces", headers=scene.ada, json={"name": name})
    scene.workspace = made.json()["id"]
    created = await scene.create(scene.ada, workspace=scene.workspace)
    assert created.status_code == 201, created.text
    scene.key = created.json()["id"]
    await scene.agent.obey()


@pytest.mark.timeout(400)
async def test_three_at_random_cuts_keep_the_invariants(scene: Scene) -> None:
    hub = await Actors(scene.app.state.database).hub()
    # Her own token ends with a suspension; the hub's lets the rest of a round get further.
    scene.ada = {"Authorization": f"Bearer {hub}", "X-RemoteGPU-On-Behalf-Of": "ada"}
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311 - a test's dice
    for number in range(ROUNDS):
        await _new_round(scene)
        asks = _mixed(scene)
        names = chance.sample(sorted(asks), 3)
        requests = [Request(chance.randrange(8)) for _ in names]
        with _cutting(scene.app):
            running = []
            for name, request in zip(names, requests, strict=True):
                running.append(asyncio.create_task(_run(request, asks[name])))
                await request.until_cut(running[-1])
            for request in chance.sample(requests, 3):
                request.go.set()
                await asyncio.wait(running, timeout=BLOCKED_S, return_when=asyncio.FIRST_COMPLETED)
            answers = await asyncio.gather(*running)
        told = (
            seed,
            number,
            [(n, r.cut, a.status_code) for n, r, a in zip(names, requests, answers, strict=True)],
        )
        assert all(answer.status_code < 500 or answer.status_code == 503 for answer in answers), told
        async with scene.app.state.database.sessions() as db:
            await assert_invariants(db)
        orphans = await scene.scalar(
            "SELECT count(*) FROM environments e JOIN workspaces w ON w.id = e.workspace_id "
            "WHERE w.status <> 'active' AND e.desired = 'running'"
        )
        assert orphans == 0, told
        await _clean(scene)
        left = await scene.scalar("SELECT count(*) FROM allocations WHERE released_at IS NULL")
        assert left == 0, told
