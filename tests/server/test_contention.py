"""Races, 200 rounds each, on separate connections with real commits: one winner a round, then the invariants.

``REMOTEGPU_ROUNDS`` changes the number. Where two requests must meet inside their transactions,
``test_interleavings.py`` says at which statement; here the database's own timing decides.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.environments import loop as queue
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors, Person

ROUNDS = int(os.environ.get("REMOTEGPU_ROUNDS", "200"))
CHECKED_EVERY = 25
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def work(work: Work) -> Work:
    """It leads longer than a lease: the rounds take their time."""
    async with work.database.sessions() as db:
        await db.execute(text("UPDATE leadership SET expires_at = now() + interval '1 hour'"))
        await db.commit()
    return work


async def _race(app: FastAPI, name: str, one_round: Callable[[int], Awaitable[str]]) -> None:
    """``one_round`` plays a round, asserts its result and names how it went."""
    seen: Counter[str] = Counter()
    for number in range(ROUNDS):
        seen[await one_round(number)] += 1
        if number % CHECKED_EVERY == CHECKED_EVERY - 1:
            async with app.state.database.sessions() as db:
                await assert_invariants(db)
    print(f"{name}: {ROUNDS} rounds, {dict(seen)}")


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


@pytest.mark.parametrize("level", ["user", "customer"])
async def test_last_unit_of_quota(fleet: Fleet, actors: Actors, app: FastAPI, level: str) -> None:
    agent = await fleet.host("h1", gpus=8, cpus=1000)
    people = [await actors.user("ada"), await actors.user("bob")]
    await fleet.limit(level, "ada" if level == "user" else "default", gpus=1)
    racers = [people[0], people[0], people[0] if level == "user" else people[1]]

    async def one_round(number: int) -> str:
        answers = await asyncio.gather(
            *(fleet.create(one.headers, f"r{number}-{index}", gpus=1) for index, one in enumerate(racers))
        )
        assert _codes(answers) == [201, 409, 409]
        winner = _winner(answers)
        await _forget(fleet, agent, racers[winner], answers[winner].json()["id"])
        return f"winner {winner}"

    await _race(app, f"last unit of a {level}'s quota", one_round)


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

    async def one_round(number: int) -> str:
        blocker = (await fleet.create(ada.headers, f"b{number}", gpus=1)).json()["id"]
        waiting = (await fleet.create(bob.headers, f"w{number}", gpus=1)).json()
        assert waiting["status"] == "pending", waiting
        await fleet.client.delete(f"/v1/environments/{blocker}", headers=ada.headers)
        await agent.obey()
        stopped, _ = await asyncio.gather(
            fleet.act(bob.headers, waiting["id"], "stop"), queue.place_pending(work)
        )
        assert stopped.status_code == 200, stopped.text
        await queue.place_pending(work)
        now = await fleet.get(bob.headers, waiting["id"])
        assert now["status"] in ("stopped", "stopping")
        await _forget(fleet, agent, bob, waiting["id"])
        assert await fleet.gpus_free() == 1
        return str(now["status"])

    await _race(app, "cancel against start", one_round)


async def test_cordon_against_place(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    """A host is cordoned while something is placed: whatever was granted was granted before the cordon."""
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    ada = await actors.user("ada")

    async def one_round(number: int) -> str:
        created, cordoned = await asyncio.gather(
            fleet.create(ada.headers, f"r{number}", gpus=1, queue=False),
            _after(number, fleet.client.post("/v1/hosts/h1:cordon", headers=fleet.admin)),
        )
        assert cordoned.status_code == 200, cordoned.text
        late = await fleet.create(ada.headers, f"late{number}", gpus=0, queue=False)
        assert late.status_code == 503, late.text
        if created.status_code == 201:
            await _forget(fleet, agent, ada, created.json()["id"])
        else:
            assert created.status_code == 503, created.text
        answer = await fleet.client.post("/v1/hosts/h1:uncordon", headers=fleet.admin)
        assert answer.status_code == 200
        return str(created.status_code)

    await _race(app, "cordon against place", one_round)


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
        await queue.place_pending(work)
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
            await queue.place_pending(work)

    await asyncio.gather(serve(), *(person(one, index) for index, one in enumerate(people)))
    for _ in range(3):
        await queue.place_pending(work)
        await agent.obey()
    assert await fleet.gpus_free() == 3
    async with app.state.database.sessions() as db:
        await assert_invariants(db)
        assert await db.scalar(text("SELECT count(*) FROM placements WHERE released_at IS NULL")) == 0
