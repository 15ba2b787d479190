"""Limits at three levels, policies, what-if, and the race for the last unit."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import QuotaExceeded
from remotegpu.types.quotas import QuotaResource
from remotegpu_server.db import tables
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.quotas import policies, service
from remotegpu_server.testing import Actors, Person

ROUNDS = 200


async def _personal(app: FastAPI, person: Person) -> str:
    async with app.state.database.sessions() as db:
        return str(
            await db.scalar(text("SELECT id FROM workspaces WHERE personal_of = :user"), {"user": person.id})
        )


async def test_quota_of_workspace_binds_what_lives_in_it(
    fleet: Fleet, actors: Actors, app: FastAPI, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    workspace = await _personal(app, ada)
    await fleet.limit("workspace", workspace, gpus=1)
    assert (await fleet.create(ada.headers, gpus=1)).status_code == 201
    refused = (await fleet.create(ada.headers, "more", gpus=1)).json()
    assert refused["detail"].startswith("Workspace ada may hold 1 GPU at once; 1 is in use")
    assert (refused["data"]["subject"], refused["data"]["subject_id"]) == ("workspace", workspace)
    lines = (await client.get("/v1/quota", headers=ada.headers)).json()["lines"]
    assert {one["subject"] for one in lines} == {"user", "workspace", "customer"}
    line = next(one for one in lines if (one["subject"], one["resource"]) == ("workspace", "gpus"))
    assert (line["limit"], line["used"], line["available"], line["subject_name"]) == (1, 1, 0, "ada")


async def test_tasks_do_not_exist_yet(fleet: Fleet, actors: Actors, client: httpx.AsyncClient) -> None:
    ada = await actors.user("ada")
    await fleet.limit("user", "ada", tasks=3)
    lines = (await client.get("/v1/quota", headers=ada.headers)).json()["lines"]
    found = {one["resource"]: (one["used"], one["available"]) for one in lines if one["subject"] == "user"}
    assert found["tasks"] == (0, 3)


async def test_lowering_below_use_stops_nothing_and_says_who_is_over(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    made = (await fleet.create(ada.headers, gpus=2)).json()
    answer = await client.put("/v1/quotas/user/ada", headers=fleet.admin, json={"limits": {"gpus": 1}})
    (over,) = answer.json()["over"]
    assert (over["resource"], over["limit"], over["used"], over["over_by"]) == ("gpus", 1, 2, 1)
    assert "What runs goes on; what is new is refused until 1 GPU" in over["message"]
    assert (await fleet.get(ada.headers, made["id"]))["status"] == "starting"
    assert (await fleet.create(ada.headers, "more", gpus=1)).json()["error"] == "quota_exceeded"


async def test_what_if_names_the_binding_level_and_changes_nothing(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=2)
    ada, eve = await actors.user("ada"), await actors.user("eve", customer="other")
    await fleet.limit("customer", "default", gpus=1)

    async def ask(person: Person, **body: Any) -> httpx.Response:
        return await client.post("/v1/quotas:check", headers=person.headers, json=body)

    verdict = (await ask(ada, amounts={"gpus": 2, "environments": 1})).json()
    assert (verdict["allowed"], verdict["binding"]["subject"]) == (False, "customer")
    assert "Ask for at most 1 GPU" in verdict["hint"]
    assert (await ask(ada, amounts={"gpus": 1})).json()["allowed"]
    assert (await ask(eve, amounts={"gpus": 1}, user="ada")).status_code == 404
    assert (await fleet.create(ada.headers, gpus=1)).status_code == 201


async def test_policy_binds_its_group_until_an_own_limit_and_reset(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, work: Work
) -> None:
    async def limit_of(name: str) -> tuple[int | None, str | None]:
        lines = (await client.get(f"/v1/quotas/user/{name}", headers=fleet.admin)).json()["lines"]
        line = next(one for one in lines if (one["subject"], one["resource"]) == ("user", "gpus"))
        return line["limit"], line["policy"]

    async def policy(name: str, gpus: int, **target: str) -> httpx.Response:
        body = {"name": name, "limits": {"gpus": gpus}, "applies_to": [{"subject": "user", **target}]}
        return await client.post("/v1/quota-policies", headers=fleet.admin, json=body)

    await actors.user("ada")
    assert (await policy("all", 1)).json()["subjects"] == 2, "root and ada"
    await policy("owners", 2, group="owner")
    await policy("default", 3, customer="default", group="member")
    assert await limit_of("ada") == (3, "default")
    await actors.user("new")
    assert await limit_of("new") == (3, "default"), "new users are bound from the start"
    await actors.user("olga", role="owner", customer="other")
    assert await limit_of("olga") == (2, "owners")
    again = await policy("again", 9, group="owner")
    assert (again.status_code, again.json()["error"]) == (422, "invalid")

    await fleet.limit("user", "ada", gpus=7)
    await client.patch("/v1/quota-policies/default", headers=fleet.admin, json={"limits": {"gpus": 5}})
    assert (await limit_of("ada"), await limit_of("new")) == ((7, None), (5, "default"))
    await client.put("/v1/quotas/user/ada", headers=fleet.admin, json={"reset": ["gpus"]})
    assert await limit_of("ada") == (5, "default")

    await client.patch("/v1/users/ada", headers=fleet.admin, json={"role": "owner"})
    async with work.session() as db:
        await policies.apply(db)
    assert await limit_of("ada") == (2, "owners"), "the loop sees the new role"
    assert (await client.delete("/v1/quota-policies/default", headers=fleet.admin)).status_code == 204
    assert await limit_of("new") == (1, "all")


async def test_policies_are_for_admins(actors: Actors, client: httpx.AsyncClient, fleet: Fleet) -> None:
    owner = await actors.user("olga", role="owner")
    assert (await client.get("/v1/quota-policies", headers=owner.headers)).status_code == 403
    found = (await client.get("/v1/quota-policies/pro", headers=fleet.admin)).json()
    assert (found["limits"]["gpus"], found["limits"]["storage_bytes"]) == (2, 200 * 2**30)


async def _used_hours(client: httpx.AsyncClient, headers: dict[str, str]) -> float:
    lines = (await client.get("/v1/quota", headers=headers)).json()["lines"]
    return float(
        next(one["used"] for one in lines if (one["subject"], one["resource"]) == ("user", "gpu_hours"))
    )


async def _hours_of(db: AsyncSession, person: Person) -> float:
    found = await service.lines(db, subjects=await service.subjects_of(db, user_id=person.id))
    return next(one.used or 0.0 for one in found if one.resource is QuotaResource.GPU_HOURS)


async def _move_allocations(app: FastAPI, *, begin_h: float, end_h: float | None) -> None:
    """Pretend that all GPUs were held from that many hours ago on."""
    async with app.state.database.sessions() as db:
        await db.execute(text("SET LOCAL session_replication_role = replica"))
        await db.execute(
            text(
                "UPDATE allocations SET allocated_at = now() - make_interval(mins => :begin),"
                " released_at = CASE WHEN released_at IS NULL THEN NULL"
                " ELSE now() - make_interval(mins => :end) END"
            ),
            {"begin": int(begin_h * 60), "end": int((end_h or 0) * 60)},
        )
        await db.commit()


async def test_gpu_hours_are_summed_over_the_window_and_a_refusal_says_when(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    body = {"limits": {"gpu_hours": 4}, "window_s": 36000}
    await client.put("/v1/quotas/user/ada", headers=fleet.admin, json=body)
    made = (await fleet.create(ada.headers, gpus=2)).json()
    await _move_allocations(app, begin_h=1.5, end_h=None)
    assert await _used_hours(client, ada.headers) == pytest.approx(3.0, abs=0.01), "live ones up to now"
    await fleet.act(ada.headers, made["id"], "stop")
    await agent.obey()
    assert await _used_hours(client, ada.headers) == pytest.approx(3.0, abs=0.01), "released ones stay"
    await _move_allocations(app, begin_h=9, end_h=6)
    assert await _used_hours(client, ada.headers) == pytest.approx(6.0, abs=0.01)

    async with app.state.database.sessions() as db:
        await db.execute(text("INSERT INTO allocations_history SELECT * FROM allocations"))
        await db.execute(text("DELETE FROM allocations"))
        assert await _hours_of(db, ada) == pytest.approx(6.0, abs=0.01), "the history counts"
        await db.rollback()

    refused = (await fleet.create(ada.headers, "more", gpus=1)).json()
    assert refused["error"] == "quota_exceeded"
    assert refused["detail"] == "User ada may use 4 GPU-hours in 10 hours; 6 are used."
    assert refused["hint"].startswith("Again from ")
    assert (await fleet.create(ada.headers, "cpu-only", gpus=0)).status_code == 201
    async with app.state.database.sessions() as db:
        # Two GPUs were held: 2 hours too many are gone when the window has moved one hour into them.
        minutes = await db.scalar(
            text("SELECT extract(epoch FROM CAST(:at AS timestamptz) - now()) / 60"),
            {"at": refused["data"]["retry_at"]},
        )
    assert float(minutes) == pytest.approx(120, abs=2)
    await _move_allocations(app, begin_h=14, end_h=11)
    assert (await fleet.create(ada.headers, "more", gpus=1)).status_code == 201, "outside the window"


async def test_last_unit_at_three_levels_at_once_goes_to_exactly_one(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    """One unit left of the limit of user, workspace and customer together, and of each alone: 200 rounds.

    Each contender is a transaction of its own on its own connection; a barrier lets them begin together.
    """
    agent = await fleet.host("h1", gpus=1, cpus=1000)
    people = [await actors.user(name) for name in ("ada", "ben", "cem")]
    ada = people[0]
    workspace = await _personal(app, ada)
    for kind, subject in (("user", "ada"), ("workspace", workspace), ("customer", "default")):
        await fleet.limit(kind, subject, environments=1, memory_bytes=None)
    seed = (await fleet.create(ada.headers, "seed")).json()
    await fleet.act(ada.headers, seed["id"], "stop")
    await agent.obey()
    mixed, alone = [ada, ada, people[1], people[2]], [ada] * 4
    rounds = [(("user", "workspace", "customer"), mixed), (("user",), alone), (("workspace",), alone)]
    rounds.append((("customer",), mixed))

    async def contend(number: int, index: int, person: Person, barrier: asyncio.Barrier) -> str | None:
        async with app.state.database.sessions() as db:
            subjects = await service.subjects_of(db, user_id=person.id)
            await barrier.wait()
            try:
                await service.check(db, subjects=subjects, adding={QuotaResource.ENVIRONMENTS: 1})
            except QuotaExceeded:
                return None
            key = tables.new_id("env")
            await db.execute(
                text(
                    "INSERT INTO environments (id, owner_id, customer_id, workspace_id, name, display_name,"
                    " image_id, gpus, cpus, memory_bytes, desired, status, reason, message)"
                    " SELECT :id, :owner, customer_id, :workspace, :name, '', image_id, 0, 1, 1, 'running',"
                    " 'pending', 'requested', '' FROM environments WHERE name = 'seed'"
                ),
                {
                    "id": key,
                    "owner": person.id,
                    "workspace": subjects[1].id,
                    "name": f"r{number}-{index}",
                },
            )
            await db.commit()
            return key

    for number in range(ROUNDS):
        limited, contenders = rounds[number % len(rounds)]
        async with app.state.database.sessions() as db:
            await db.execute(
                text(
                    "UPDATE quotas SET changed_at = now(), limit_value ="
                    " CASE WHEN subject_type = ANY(:limited) THEN 1 END WHERE resource = 'environments'"
                ),
                {"limited": list(limited)},
            )
            await db.commit()
        barrier = asyncio.Barrier(len(contenders))
        won = [
            key
            for key in await asyncio.gather(
                *(contend(number, index, one, barrier) for index, one in enumerate(contenders))
            )
            if key is not None
        ]
        assert len(won) == 1, f"round {number}: {won}"
        async with app.state.database.sessions() as db:
            if number % 20 == 0:
                await assert_invariants(db)
            await db.execute(text("DELETE FROM environments WHERE id = :id"), {"id": won[0]})
            await db.commit()


async def test_lowering_a_limit_against_a_placement_lets_one_of_them_be_first(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    for number in range(20):
        await fleet.limit("user", "ada", gpus=1)
        lowered, made = await asyncio.gather(
            client.put("/v1/quotas/user/ada", headers=fleet.admin, json={"limits": {"gpus": 0}}),
            fleet.create(ada.headers, f"r{number}", gpus=1),
        )
        assert lowered.status_code == 200
        assert made.status_code in (201, 409), made.text
        async with app.state.database.sessions() as db:
            await assert_invariants(db)
        if made.status_code == 201:
            await fleet.act(ada.headers, made.json()["id"], "stop")
            await agent.obey()
