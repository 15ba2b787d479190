"""Many at once: the database decides, exactly one wins, nobody gets a 500."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text

from remotegpu_server.db.notify import notify
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.testing import Actors

ROUNDS = 20
AT_ONCE = 50


@pytest.mark.timeout(300)
async def test_last_free_gpu_goes_to_exactly_one_of_fifty(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    people = [await actors.user(f"user{number}") for number in range(AT_ONCE)]
    for round_number in range(ROUNDS):
        answers = await asyncio.gather(
            *(fleet.create(one.headers, f"r{round_number}", gpus=1, queue=False) for one in people)
        )
        assert Counter(answer.status_code for answer in answers) == {201: 1, 503: AT_ONCE - 1}
        assert {answer.json()["error"] for answer in answers if answer.status_code == 503} == {"no_capacity"}
        async with app.state.database.sessions() as db:
            await assert_invariants(db)
        winner = next(index for index, answer in enumerate(answers) if answer.status_code == 201)
        await fleet.act(people[winner].headers, answers[winner].json()["id"], "stop")
        await agent.obey()
        assert await fleet.gpus_free() == 1


async def test_last_unit_of_a_customers_quota_goes_to_exactly_one(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=8, cpus=1000)
    people = [await actors.user(f"user{number}") for number in range(20)]
    await fleet.limit("customer", "default", gpus=1)
    for round_number in range(5):
        answers = await asyncio.gather(
            *(fleet.create(one.headers, f"r{round_number}", gpus=1) for one in people)
        )
        assert Counter(answer.status_code for answer in answers) == {201: 1, 409: len(people) - 1}
        assert {answer.json()["error"] for answer in answers if answer.status_code == 409} == {
            "quota_exceeded"
        }
        async with app.state.database.sessions() as db:
            await assert_invariants(db)
        winner = next(index for index, answer in enumerate(answers) if answer.status_code == 201)
        await fleet.act(people[winner].headers, answers[winner].json()["id"], "stop")
        await agent.obey()


async def test_host_memory_is_never_over_booked(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1", gpus=0, cpus=4)
    people = [await actors.user(f"user{number}") for number in range(20)]
    answers = await asyncio.gather(*(fleet.create(one.headers, cpus=1.5, queue=False) for one in people))
    assert Counter(answer.status_code for answer in answers) == {201: 2, 503: 18}


async def test_start_storm_of_one_environment_makes_one_generation(fleet: Fleet, actors: Actors) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await fleet.act(ada.headers, key, "stop")
    await agent.obey()
    answers = await asyncio.gather(*(fleet.act(ada.headers, key, "start") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["generation"] for answer in answers} == {2}
    assert await fleet.gpus_free() == 1


async def test_create_storm_of_one_name_makes_one_environment(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    answers = await asyncio.gather(*(fleet.create(ada.headers, gpus=1) for _ in range(10)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 9}
    assert {answer.json()["error"] for answer in answers if answer.status_code == 409} == {"name_taken"}


async def test_start_stop_storm_with_the_queue_and_the_agent_stays_consistent(
    fleet: Fleet, actors: Actors, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=2)
    people = [await actors.user(f"user{number}") for number in range(6)]
    keys = [(await fleet.create(one.headers, gpus=1)).json()["id"] for one in people]

    async def toggle(index: int) -> None:
        for verb in ("stop", "start", "stop", "start"):
            answer = await fleet.act(people[index].headers, keys[index], verb)
            assert answer.status_code in (200, 409), answer.text

    async def serve() -> None:
        for _ in range(6):
            for workload in (await agent.desired()).values():
                seen = "running" if workload["desired"] == "running" else "absent"
                answer = await agent.observe(workload["id"], seen, generation=workload["generation"])
                assert answer.status_code in (204, 409), answer.text
            await turns.place_pending(work)

    await asyncio.gather(serve(), *(toggle(index) for index in range(len(people))))
    for person, key in zip(people, keys, strict=True):
        await fleet.act(person.headers, key, "stop")
    await agent.obey()
    await agent.obey()
    assert await fleet.gpus_free() == 2


async def test_enrolment_token_used_twice_at_once_lets_one_agent_in(fleet: Fleet) -> None:
    token = await fleet.new_host("h1")
    answers = await asyncio.gather(fleet.enroll(token), fleet.enroll(token))
    assert sorted(answer.status_code for answer in answers) == [201, 410]


async def test_hint_given_before_a_savepoint_is_sent_at_the_commit(app: FastAPI) -> None:
    database = app.state.database
    await database.signals.connected.wait()  # a new connection wakes everybody once
    with database.signals.watch("environment:x") as watch:
        async with database.sessions() as db:
            notify(db, "environment:x")
            async with db.begin_nested():
                await db.execute(text("SELECT 1"))
            savepoint = await db.begin_nested()
            await savepoint.rollback()
            assert not await watch.wait(0)
            await db.commit()
        assert await watch.wait(0)
