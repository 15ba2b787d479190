"""Parts of GPUs: shares and MIG instances, through the API and against the database itself."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import GIB, Fleet, HollowAgent, gpu
from sqlalchemy.exc import IntegrityError

from remotegpu_server.capacity import service as capacity
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import Actors

ROUNDS = int(os.environ.get("REMOTEGPU_ROUNDS", "200"))
CHECKED_EVERY = 25


def mig(uuid: str, *, parent: str, profile: str = "1g.10gb", memory_gib: int = 10) -> dict[str, Any]:
    made = gpu(uuid)
    return made | {"mig_profile": profile, "parent_uuid": parent, "memory_total_bytes": memory_gib * GIB}


async def divided(fleet: Fleet, name: str = "h1") -> HollowAgent:
    """A host whose one GPU is divided into two instances."""
    agent = await fleet.host(name, gpus=1, cpus=1000)
    parent = agent.gpus[0] | {"mig_enabled": True}
    agent.gpus = [parent, mig("MIG-1", parent=parent["uuid"]), mig("MIG-2", parent=parent["uuid"])]
    assert (await agent.register()).status_code == 201
    return agent


async def test_share_is_told_to_the_environment_and_counts_as_a_part_of_a_gpu(
    fleet: Fleet, actors: Actors
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await fleet.limit("user", ada.id, gpus=1)
    first = (await fleet.create(ada.headers, "a", gpus=1, gpu_memory_bytes=20 * GIB)).json()
    assert first["status"] == "starting"
    assert first["allocated_gpus"][0]["memory_bytes"] == 20 * GIB
    env = (await agent.desired())[first["id"]]["env"]
    assert env["REMOTEGPU_GPU_MEMORY_BYTES"] == str(20 * GIB)
    second = (await fleet.create(ada.headers, "b", gpus=1, gpu_memory_bytes=40 * GIB)).json()
    assert second["allocated_gpus"][0]["uuid"] == first["allocated_gpus"][0]["uuid"]
    lines = (await fleet.client.get("/v1/quota", headers=ada.headers)).json()["lines"]
    assert next(one["used"] for one in lines if one["resource"] == "gpus") == 0.75
    (shown,) = (await fleet.client.get("/v1/gpus", headers=ada.headers)).json()["items"]
    assert (shown["free"], shown["shares"], shown["memory_free_bytes"]) == (False, 2, 20 * GIB)
    beyond = await fleet.create(ada.headers, "c", gpus=1, gpu_memory_bytes=21 * GIB)
    assert beyond.json()["error"] == "quota_exceeded"


async def test_whole_gpu_excludes_shares_and_shares_exclude_the_whole(fleet: Fleet, actors: Actors) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    share = (await fleet.create(ada.headers, gpus=1, gpu_memory_bytes=GIB)).json()
    waiting = (await fleet.create(bob.headers, gpus=1)).json()
    assert (waiting["status"], waiting["reason"]) == ("pending", "no_free_gpu")
    await fleet.act(bob.headers, waiting["id"], "stop")
    await fleet.act(ada.headers, share["id"], "stop")
    await agent.obey()
    whole = (await fleet.act(bob.headers, waiting["id"], "start")).json()
    assert whole["status"] == "starting"
    refused = await fleet.act(ada.headers, share["id"], "start", queue=False)
    assert refused.json()["error"] == "no_capacity"
    assert "at most 0 GiB of one are free" in refused.json()["detail"]


async def test_mig_instance_serves_its_profile_and_its_parent_serves_nobody(
    fleet: Fleet, actors: Actors
) -> None:
    await divided(fleet)
    ada = await actors.user("ada")
    whole = await fleet.create(ada.headers, "whole", gpus=1)
    assert whole.json()["error"] == "unsatisfiable"
    part = (await fleet.create(ada.headers, "part", gpus=1, mig_profile="1g.10gb")).json()
    assert part["status"] == "starting"
    (held,) = part["allocated_gpus"]
    assert held["mig_profile"] == "1g.10gb"
    both = (await fleet.create(ada.headers, "both", gpus=2, mig_profile="1g.10gb")).json()
    assert both["reason"] == "no_free_gpu"
    unknown = await fleet.create(ada.headers, "other", gpus=1, mig_profile="3g.40gb")
    assert "Profiles here: 1g.10gb" in unknown.json()["detail"]
    lines = (await fleet.client.get("/v1/quota", headers=ada.headers)).json()["lines"]
    assert next(one["used"] for one in lines if one["resource"] == "gpus") == 0.125


@pytest.mark.parametrize(
    "spec",
    [
        {"gpus": 2, "gpu_memory_bytes": GIB},
        {"gpus": 0, "gpu_memory_bytes": GIB},
        {"gpus": 1, "gpu_memory_bytes": GIB, "mig_profile": "1g.10gb"},
    ],
)
async def test_share_of_several_or_none_is_invalid(
    fleet: Fleet, actors: Actors, spec: dict[str, Any]
) -> None:
    ada = await actors.user("ada")
    assert (await fleet.create(ada.headers, **spec)).status_code == 422


async def test_models_labels_and_memory_range_choose_the_host(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("a", gpus=1)
    await fleet.host("b", gpus=1, model="H100-80GB")
    labelled = await fleet.client.patch("/v1/hosts/b", headers=fleet.admin, json={"labels": {"zone": "x"}})
    assert labelled.status_code == 200
    ada = await actors.user("ada")
    asked = {"gpus": 1, "gpu_models": ["V100-32GB", "H100-80GB"], "host_labels": {"zone": "x"}}
    made = (await fleet.create(ada.headers, "one", **asked)).json()
    assert made["host_name"] == "b"
    assert made["gpu_models"] == ["V100-32GB", "H100-80GB"]
    none = await fleet.create(ada.headers, "two", gpus=1, min_gpu_memory_bytes=81 * GIB)
    assert none.json()["error"] == "unsatisfiable"
    assert "the GPUs here have 80 GiB" in none.json()["detail"]


_HOLD = """
    INSERT INTO allocations (id, gpu_id, host_id, placement_id, environment_id, user_id, customer_id,
        workspace_id, memory_bytes, gpu_fraction)
    SELECT :id, g.id, g.host_id, p.id, p.environment_id, p.user_id, p.customer_id, p.workspace_id, :bytes, 1
    FROM gpus g, placements p WHERE g.uuid = :uuid AND p.host_id = g.host_id LIMIT 1
"""


@pytest.mark.parametrize(
    ("held", "wanted", "fits"),
    [
        ([None], None, False),
        ([None], GIB, False),
        ([GIB], None, False),
        ([40 * GIB], 40 * GIB, True),
        ([40 * GIB], 40 * GIB + 1, False),
        ([40 * GIB, 30 * GIB], 11 * GIB, False),
    ],
)
async def test_database_refuses_what_does_not_fit_on_a_gpu(
    fleet: Fleet, actors: Actors, app: FastAPI, held: list[int | None], wanted: int | None, fits: bool
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await fleet.create(ada.headers, gpus=0)
    async with app.state.database.sessions() as db:
        for number, taken in enumerate(held):
            await db.execute(sa.text(_HOLD), {"id": f"h{number}", "uuid": "GPU-h1-0", "bytes": taken})
        more = db.execute(sa.text(_HOLD), {"id": "more", "uuid": "GPU-h1-0", "bytes": wanted})
        if fits:
            await more
        else:
            with pytest.raises(IntegrityError):
                await more


async def test_database_refuses_a_gpu_that_is_divided(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    await divided(fleet)
    ada = await actors.user("ada")
    await fleet.create(ada.headers, gpus=0)
    async with app.state.database.sessions() as db:
        with pytest.raises(IntegrityError, match="divided"):
            await db.execute(sa.text(_HOLD), {"id": "x", "uuid": "GPU-h1-0", "bytes": None})


@pytest.mark.timeout(300)
async def test_shares_race_for_one_gpu_and_the_database_never_gives_more_than_it_has(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    """Straight at the table, on connections of their own, with nothing but the database to stop them."""
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await fleet.create(ada.headers, gpus=0)
    sizes = [None, 50 * GIB, 40 * GIB, 30 * GIB]
    won: set[tuple[int | None, ...]] = set()

    async def take(barrier: asyncio.Barrier, name: str, size: int | None) -> int | bool | None:
        async with app.state.database.sessions() as db:
            await db.execute(sa.text("SELECT 1"))
            await barrier.wait()
            try:
                await db.execute(sa.text(_HOLD), {"id": name, "uuid": "GPU-h1-0", "bytes": size})
                await db.commit()
            except IntegrityError:
                return False
        return size

    for number in range(ROUNDS):
        barrier = asyncio.Barrier(len(sizes))
        turn = sizes[number % 4 :] + sizes[: number % 4]
        taken = await asyncio.gather(*(take(barrier, f"{number}-{size}", size) for size in turn))
        got = [one for one in taken if one is not False]
        assert got
        assert None not in got or len(got) == 1
        assert sum(one or 0 for one in got) <= 80 * GIB
        won.add(tuple(sorted(got, key=lambda one: one or 0)))
        async with app.state.database.sessions() as db:
            await db.execute(sa.text("DELETE FROM allocations"))
            await db.commit()
    assert len(won) > 1, "the order of arrival decides"


@pytest.mark.timeout(300)
async def test_shares_race_through_the_api_and_the_rest_wait(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    people = [await actors.user(f"user{number}") for number in range(6)]
    for round_number in range(10):
        answers: list[httpx.Response] = await asyncio.gather(
            *(
                fleet.create(one.headers, f"r{round_number}", gpus=1, gpu_memory_bytes=30 * GIB)
                for one in people
            )
        )
        assert {answer.status_code for answer in answers} == {201}
        started = [answer.json() for answer in answers if answer.json()["status"] == "starting"]
        assert len(started) == 2
        async with app.state.database.sessions() as db:
            await assert_invariants(db)
        for person, answer in zip(people, answers, strict=True):
            await fleet.act(person.headers, answer.json()["id"], "stop")
        await agent.obey()


@pytest.mark.timeout(600)
async def test_last_mig_instance_goes_to_exactly_one(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    agent = await divided(fleet)
    people = [await actors.user("ada"), await actors.user("bob")]
    won: Counter[int] = Counter()
    for number in range(ROUNDS // 2):  # a whole create each: half the rounds take the time of the others
        asked = [
            fleet.create(one.headers, f"r{number}", gpus=2, mig_profile="1g.10gb", queue=False)
            for one in people
        ]
        turn = number % 2
        answers: list[httpx.Response] = await asyncio.gather(*(asked[turn:] + asked[:turn]))
        answers = answers[-turn:] + answers[:-turn] if turn else answers
        assert sorted(answer.status_code for answer in answers) == [201, 503]
        if number % CHECKED_EVERY == CHECKED_EVERY - 1:
            async with app.state.database.sessions() as db:
                await assert_invariants(db)
        winner = next(index for index, answer in enumerate(answers) if answer.status_code == 201)
        won[winner] += 1
        key = answers[winner].json()["id"]
        await fleet.client.delete(f"/v1/environments/{key}", headers=people[winner].headers)
        await agent.obey()
    print(f"last MIG instances: {dict(won)}")
    assert ROUNDS < CHECKED_EVERY or set(won) == {0, 1}


async def test_fleet_of_a_process_follows_every_change_and_forgets_what_was_rolled_back(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")

    async def free(*, cpus: bool = False) -> float:
        async with app.state.database.sessions() as db:
            host = (await capacity.fleet(db)).host(agent.host_id)
            assert host is not None
            return host.cpus_free if cpus else sum(one.free for one in host.gpus if host.ready)

    assert await free() == 2
    made = (await fleet.create(ada.headers, gpus=1)).json()
    assert await free() == 1
    await fleet.client.post("/v1/hosts/h1:cordon", headers=fleet.admin)
    assert await free() == 0
    await fleet.client.post("/v1/hosts/h1:uncordon", headers=fleet.admin)
    await fleet.act(ada.headers, made["id"], "stop")
    await agent.obey()
    assert await free() == 2
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("UPDATE hosts SET cpus = 7"))
        host = (await capacity.fleet(db)).host(agent.host_id)
        assert host is not None
        assert host.cpus_free == 7, "a transaction sees its own changes"
        await db.rollback()
    assert await free(cpus=True) == 32


async def test_fleet_sees_what_the_transaction_that_looked_last_changed_afterwards(
    fleet: Fleet, app: FastAPI
) -> None:
    """A snapshot does not list its own transaction; once a later one has ended, it takes it for ended too."""
    agent = await fleet.host("h1", gpus=2)
    sessions = app.state.database.sessions
    async with sessions() as looking, sessions() as other, sessions() as after:
        await looking.execute(sa.text("SELECT pg_current_xact_id()"))
        await other.execute(sa.text("SELECT pg_current_xact_id()"))
        await other.commit()
        await capacity.fleet(looking)
        await looking.execute(sa.text("UPDATE hosts SET cpus = 7"))
        await looking.commit()
        host = (await capacity.fleet(after)).host(agent.host_id)
    assert host is not None
    assert host.cpus_free == 7


async def test_dedicated_host_takes_the_work_of_those_it_is_lent_to(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, eve = await actors.user("ada"), await actors.user("eve", customer="other")
    assert (await fleet.create(eve.headers, "before", gpus=1)).json()["status"] == "starting"
    async with app.state.database.sessions() as db:
        await db.execute(
            sa.text(
                "INSERT INTO dedications (id, host_id, customer_id, status, starts_at, ends_at, created_by)"
                " VALUES ('ded-1', :host, :customer, 'active', now(), now() + interval '1 day', 'test')"
            ),
            {"host": agent.host_id, "customer": ada.customer_id},
        )
        await db.commit()
    waiting = (await fleet.create(eve.headers, "after", gpus=1)).json()
    assert waiting["status"] == "pending"
    assert "lent to others" in waiting["message"]
    assert (await fleet.create(ada.headers, gpus=1)).json()["status"] == "starting"


async def test_capacity_tells_the_largest_share_and_the_profiles_that_are_there(
    fleet: Fleet, actors: Actors
) -> None:
    ada = await actors.user("ada")
    await fleet.host("h0", gpus=1)
    await divided(fleet)
    await fleet.create(ada.headers, "a", gpus=1, gpu_memory_bytes=20 * GIB)
    await fleet.create(ada.headers, "b", gpus=1, mig_profile="1g.10gb")
    found = (await fleet.client.get("/v1/capacity", headers=ada.headers)).json()
    (model,) = found["gpu_models"]
    assert (model["total"], model["free"], model["largest_free_share_bytes"]) == (1, 0, 60 * GIB)
    (profile,) = found["mig_profiles"]
    assert (profile["profile"], profile["total"], profile["free"]) == ("1g.10gb", 2, 1)
    assert profile["largest_free_on_one_host"] == 1
