"""Races, 200 rounds each, on separate connections with real commits: one winner a round, then the invariants.

``REMOTEGPU_ROUNDS`` changes the number. Where two requests must meet inside their transactions,
``test_interleavings.py`` says at which statement; here the database's own timing decides.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.testing import Actors, Person

ROUNDS = int(os.environ.get("REMOTEGPU_ROUNDS", "200"))
CHECKED_EVERY = 25
STEPS = 20
pytestmark = pytest.mark.timeout(600)
T = TypeVar("T")


@pytest.fixture
async def work(work: Work) -> Work:
    """It leads longer than a lease: the rounds take their time."""
    async with work.database.sessions() as db:
        await db.execute(text("UPDATE leadership SET expires_at = now() + interval '1 hour'"))
        await db.commit()
    return work


async def _race(
    app: FastAPI, name: str, one_round: Callable[[int], Awaitable[str]], *, ends: frozenset[str] = frozenset()
) -> None:
    """``one_round`` plays a round, asserts its result and names how it went.

    ``ends``: what must have been seen, or the two sides never met.
    """
    seen: Counter[str] = Counter()
    for number in range(ROUNDS):
        seen[await one_round(number)] += 1
        if number % CHECKED_EVERY == CHECKED_EVERY - 1:
            async with app.state.database.sessions() as db:
                await assert_invariants(db)
    print(f"{name}: {ROUNDS} rounds, {dict(seen)}")
    if ROUNDS >= 3 * STEPS:
        assert ends <= set(seen), f"{name}: never {ends - set(seen)}, only {dict(seen)}"


class _Sweep:
    """Begins the short side of a race later and later within what the long side takes, as measured here.

    A fixed delay meets nothing on a machine of another speed.
    """

    def __init__(self) -> None:
        self._took_s = 0.0

    async def timed(self, asked: Awaitable[T]) -> T:
        """The long side."""
        started = time.monotonic()
        answer = await asked
        took_s = time.monotonic() - started
        self._took_s = took_s if not self._took_s else 0.8 * self._took_s + 0.2 * took_s
        return answer

    async def within(self, number: int, ask: Callable[[], Awaitable[T]]) -> T:
        """The short side: in the first of ``STEPS`` rounds at once, in the last after the other's end."""
        await asyncio.sleep(number % STEPS / (STEPS - 4) * self._took_s)
        return await ask()


async def _after(number: int, asked: Awaitable[httpx.Response]) -> httpx.Response:
    """Asked a little later in each round than in the one before, so that two meet everywhere."""
    await asyncio.sleep(number % 10 * 0.003)
    return await asked


def _codes(answers: list[httpx.Response]) -> list[int]:
    return sorted(answer.status_code for answer in answers)


def _winner(answers: list[httpx.Response]) -> int:
    return next(index for index, answer in enumerate(answers) if answer.status_code < 300)


async def _forget(fleet: Fleet, agent: HollowAgent, person: Person, key: str) -> None:
    await fleet.client.delete(f"/v1/environments/{key}", headers=person.headers)
    await agent.obey()


async def test_last_gpu(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    people = [await actors.user(f"user{number}") for number in range(3)]

    async def one_round(number: int) -> str:
        answers = await asyncio.gather(
            *(fleet.create(one.headers, f"r{number}", gpus=1, queue=False) for one in people)
        )
        assert _codes(answers) == [201, 503, 503]
        winner = _winner(answers)
        await _forget(fleet, agent, people[winner], answers[winner].json()["id"])
        return f"winner {winner}"

    await _race(app, "last GPU", one_round)


_LIMITED = {
    "user": (("user",), (("ada", "team"), ("ada", "own"), ("ada", "team"))),
    "workspace": (("workspace",), (("ada", "team"), ("bob", "team"), ("bob", "team"))),
    "customer": (("customer",), (("ada", "own"), ("bob", "team"), ("cyd", "own"))),
    "all": (
        ("user", "workspace", "customer"),
        (("ada", "team"), ("bob", "team"), ("ada", "own"), ("cyd", "own")),
    ),
}
"""Which limits have one GPU left, and who asks where."""


def _level_that_binds(limited: tuple[str, ...], loser: tuple[str, str], winner: tuple[str, str]) -> str:
    """The narrowest limit that the two share."""
    shared = {"user": loser[0] == winner[0], "workspace": loser[1] == winner[1] == "team", "customer": True}
    return next(level for level in limited if shared[level])


async def test_last_unit_of_quota_at_each_level_and_at_all_three(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    """One is let through; each of the others is told the narrowest limit that keeps it out."""
    agent = await fleet.host("h1", gpus=8, cpus=1000)
    people = {name: await actors.user(name) for name in ("ada", "bob", "cyd")}
    owner = people["ada"].headers
    answer = await fleet.client.post("/v1/workspaces", headers=owner, json={"name": "Team"})
    team = answer.json()["id"]
    body = {"user": "bob", "role": "member"}
    answer = await fleet.client.post(f"/v1/workspaces/{team}/members", headers=owner, json=body)
    assert answer.status_code == 201, answer.text
    for name in people:
        await fleet.limit("user", name, gpus=1)
    await fleet.limit("workspace", team, gpus=1)
    await fleet.limit("customer", "default", gpus=1)

    async def ask(number: int, index: int, who: tuple[str, str]) -> httpx.Response:
        where = {"workspace": team} if who[1] == "team" else {}
        return await fleet.create(people[who[0]].headers, f"r{number}-{index}", gpus=1, **where)

    async def one_round(number: int) -> str:
        level = list(_LIMITED)[number % len(_LIMITED)]
        limited, racers = _LIMITED[level]
        async with app.state.database.sessions() as db:
            await db.execute(
                text(
                    "UPDATE quotas SET changed_at = now(), limit_value ="
                    " CASE WHEN subject_type = ANY(:limited) THEN 1 END WHERE resource = 'gpus'"
                ),
                {"limited": list(limited)},
            )
            await db.commit()
        turn = number // len(_LIMITED) % len(racers)
        racers = racers[turn:] + racers[:turn]
        answers = await asyncio.gather(*(ask(number, index, who) for index, who in enumerate(racers)))
        assert _codes(answers) == [201] + [409] * (len(racers) - 1)
        winner = _winner(answers)
        for who, answer in zip(racers, answers, strict=True):
            if answer.status_code == 409:
                binding = _level_that_binds(limited, who, racers[winner])
                refusal = answer.json()
                assert (refusal["error"], refusal["data"]["subject"]) == ("quota_exceeded", binding)
                assert refusal["detail"].startswith(f"{binding.capitalize()} "), refusal["detail"]
                assert "may hold 1 GPU at once; 1 is in use" in refusal["detail"]
        async with app.state.database.sessions() as db:
            await assert_invariants(db)
        await _forget(fleet, agent, people[racers[winner][0]], answers[winner].json()["id"])
        return f"{level}: {'/'.join(racers[winner])}"

    await _race(app, "last unit of quota", one_round, ends=frozenset({"all: ada/team", "all: cyd/own"}))


async def _one_of(app: FastAPI, name: str, ask: Callable[[int], list[Awaitable[httpx.Response]]]) -> None:
    """The same create several times at once: 201 once, 409 otherwise."""

    async def one_round(number: int) -> str:
        answers = await asyncio.gather(*ask(number))
        assert _codes(answers) == [201] + [409] * (len(answers) - 1), [answer.text for answer in answers]
        return f"winner {_winner(answers)}"

    await _race(app, name, one_round)


async def test_same_environment_name(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    ada = await actors.user("ada")
    await _one_of(
        app,
        "same environment name",
        lambda number: [fleet.create(ada.headers, f"r{number}") for _ in range(3)],
    )


async def test_same_workspace_name(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    people = [await actors.user("ada"), await actors.user("bob")]

    def ask(number: int) -> list[Awaitable[httpx.Response]]:
        body = {"name": f"Team {number}"}
        return [fleet.client.post("/v1/workspaces", headers=one.headers, json=body) for one in people]

    await _one_of(app, "same workspace name", ask)


async def test_same_user_name(fleet: Fleet, app: FastAPI) -> None:
    def ask(number: int) -> list[Awaitable[httpx.Response]]:
        body = {"username": f"u{number}", "password": "correct horse battery staple"}
        return [fleet.client.post("/v1/users", headers=fleet.admin, json=body) for _ in range(2)]

    await _one_of(app, "same user name", ask)


async def test_same_host_name(fleet: Fleet, app: FastAPI) -> None:
    def ask(number: int) -> list[Awaitable[httpx.Response]]:
        return [
            fleet.client.post("/v1/hosts", headers=fleet.admin, json={"name": f"h{number}"}) for _ in range(2)
        ]

    await _one_of(app, "same host name", ask)


async def test_double_release(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    """The agent's proof twice, and an admin's word at the same time: given back once."""
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]

    async def one_round(number: int) -> str:
        generation = number + 1
        await fleet.act(ada.headers, key, "stop")
        answers = await asyncio.gather(
            _after(number, agent.observe(key, "absent", generation=generation)),
            _after(number, agent.observe(key, "absent", generation=generation)),
            fleet.act(fleet.admin, key, "release"),
        )
        assert {answer.status_code for answer in answers[:2]} <= {204, 409}
        assert answers[2].status_code in (200, 409)
        async with app.state.database.sessions() as db:
            proofs = (
                await db.scalars(
                    text("SELECT release_proof FROM placements WHERE generation = :generation"),
                    {"generation": generation},
                )
            ).all()
        assert len(proofs) == 1
        assert proofs[0] in ("absent", "admin")
        assert await fleet.gpus_free() == 1
        await agent.obey()
        assert (await fleet.act(ada.headers, key, "start")).json()["status"] == "starting"
        return f"proof {proofs[0]}"

    await _race(app, "double release", one_round)


async def test_stop_against_start_and_queue(fleet: Fleet, actors: Actors, app: FastAPI, work: Work) -> None:
    """What waits is cancelled while the queue would start it: stopped and nothing held, or stopping."""
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    sweep = _Sweep()

    async def one_round(number: int) -> str:
        blocker = (await fleet.create(ada.headers, f"b{number}", gpus=1)).json()["id"]
        waiting = (await fleet.create(bob.headers, f"w{number}", gpus=1)).json()
        assert waiting["status"] == "pending", waiting
        await fleet.client.delete(f"/v1/environments/{blocker}", headers=ada.headers)
        await agent.obey()
        stopped, _ = await asyncio.gather(
            sweep.within(number, lambda: fleet.act(bob.headers, waiting["id"], "stop")),
            sweep.timed(turns.place_pending(work)),
        )
        assert stopped.status_code == 200, stopped.text
        await turns.place_pending(work)
        now = await fleet.get(bob.headers, waiting["id"])
        assert now["status"] in ("stopped", "stopping")
        await _forget(fleet, agent, bob, waiting["id"])
        assert await fleet.gpus_free() == 1
        return str(now["status"])

    await _race(app, "cancel against start", one_round, ends=frozenset({"stopped", "stopping"}))


async def test_cordon_against_place(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    """A host is cordoned while something is placed: whatever was granted was granted before the cordon."""
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    ada = await actors.user("ada")
    sweep = _Sweep()

    async def one_round(number: int) -> str:
        created, cordoned = await asyncio.gather(
            sweep.timed(fleet.create(ada.headers, f"r{number}", gpus=1, queue=False)),
            sweep.within(number, lambda: fleet.client.post("/v1/hosts/h1:cordon", headers=fleet.admin)),
        )
        assert cordoned.status_code == 200, cordoned.text
        late = await fleet.create(ada.headers, f"late{number}", gpus=0, queue=False)
        assert late.status_code == 503, late.text
        if created.status_code == 201:
            await _forget(fleet, agent, ada, created.json()["id"])
        else:
            refusal = created.json()
            assert (created.status_code, refusal["error"]) == (503, "no_capacity"), created.text
            assert refusal["data"]["reason"] == "no_ready_host", "told, not an error"
        answer = await fleet.client.post("/v1/hosts/h1:uncordon", headers=fleet.admin)
        assert answer.status_code == 200
        return str(created.status_code)

    await _race(app, "cordon against place", one_round, ends=frozenset({"201", "503"}))


async def test_stop_against_report(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    """``running`` arrives while its owner stops it: it ends stopping, and stopped once it is proven gone."""
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    ada = await actors.user("ada")

    async def one_round(number: int) -> str:
        key = (await fleet.create(ada.headers, f"r{number}", gpus=1)).json()["id"]
        stopped, reported = await asyncio.gather(
            fleet.act(ada.headers, key, "stop"), agent.observe(key, "running", address="http://192.0.2.1:4")
        )
        assert (stopped.status_code, reported.status_code) == (200, 204), (stopped.text, reported.text)
        assert (await fleet.get(ada.headers, key))["status"] == "stopping"
        await agent.obey()
        assert (await fleet.get(ada.headers, key))["status"] == "stopped"
        return "stopping"

    await _race(app, "stop against report", one_round)


async def test_suspend_against_create(fleet: Fleet, actors: Actors, app: FastAPI, work: Work) -> None:
    """What was granted was granted before; afterwards nothing of the account starts or waits."""
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    ada = await actors.user("ada")
    hub = await actors.hub()
    headers = {"Authorization": f"Bearer {hub}", "X-RemoteGPU-On-Behalf-Of": "ada"}

    async def one_round(number: int) -> str:
        created, suspended = await asyncio.gather(
            _after(9 - number % 10, fleet.create(headers, f"r{number}", gpus=1)),
            _after(number, fleet.client.post(f"/v1/users/{ada.id}:suspend", headers=fleet.admin)),
        )
        assert suspended.status_code == 200, suspended.text
        assert created.status_code in (201, 403), created.text
        late = await fleet.create(headers, f"late{number}", gpus=0)
        assert (late.status_code, late.json()["error"]) == (403, "account_suspended")
        await turns.place_pending(work)
        answer = await fleet.client.post(f"/v1/users/{ada.id}:resume", headers=fleet.admin)
        assert answer.status_code == 200
        if created.status_code == 201:
            key = created.json()["id"]
            await fleet.client.delete(f"/v1/environments/{key}", headers=headers)
            await agent.obey()
        assert await fleet.gpus_free() == 1
        return str(created.status_code)

    await _race(app, "suspend against create", one_round)


async def test_grant_and_release_from_many_connections_conserve(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    """M2: random grants, stops, forced releases, proofs and queue passes at once; nothing leaks."""
    agent = await fleet.host("h1", gpus=3, cpus=1000)
    people = [await actors.user(f"user{number}") for number in range(4)]
    await fleet.limit("customer", "default", gpus=2)
    numbers = itertools.count()

    async def person(one: Person, index: int) -> None:
        for turn in range(ROUNDS // 20):
            answer = await fleet.create(one.headers, f"n{next(numbers)}", gpus=1 + (turn + index) % 2)
            assert answer.status_code in (201, 409), answer.text
            if answer.status_code == 201:
                key = answer.json()["id"]
                if turn % 3 == 0:
                    await fleet.act(fleet.admin, key, "release")
                await fleet.client.delete(f"/v1/environments/{key}", headers=one.headers)

    async def serve() -> None:
        for _ in range(ROUNDS // 10):
            for workload in (await agent.desired()).values():
                seen = "running" if workload["desired"] == "running" else "absent"
                await agent.observe(workload["id"], seen, generation=workload["generation"])
            await turns.place_pending(work)

    await asyncio.gather(serve(), *(person(one, index) for index, one in enumerate(people)))
    for _ in range(3):
        await turns.place_pending(work)
        await agent.obey()
    assert await fleet.gpus_free() == 3
    async with app.state.database.sessions() as db:
        await assert_invariants(db)
        assert await db.scalar(text("SELECT count(*) FROM placements WHERE released_at IS NULL")) == 0
