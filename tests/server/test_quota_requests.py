"""Asking for more: who decides, what counts at once, what lapses; GPU-hours while something runs."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text

from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.quotas import loop
from remotegpu_server.testing import Actors, Person

SOON = "2099-01-01T00:00:00Z"


async def _ask(client: httpx.AsyncClient, person: Person, **body: Any) -> httpx.Response:
    asked = {"resource": "gpus", "amount": 2, "why": "a deadline"} | body
    return await client.post("/v1/quota-requests", headers=person.headers, json=asked)


async def _decide(
    client: httpx.AsyncClient, headers: dict[str, str], request_id: str, verb: str, **body: Any
) -> httpx.Response:
    return await client.post(f"/v1/quota-requests/{request_id}:{verb}", headers=headers, json=body)


async def _told(app: FastAPI, username: str) -> list[str]:
    async with app.state.database.sessions() as db:
        found = await db.scalars(
            text(
                "SELECT n.kind FROM notifications n JOIN users u ON u.id = n.user_id"
                " WHERE u.username = :name ORDER BY n.created_at, n.id"
            ),
            {"name": username},
        )
        return list(found)


async def _gpus(client: httpx.AsyncClient, person: Person) -> dict[str, Any]:
    lines = (await client.get("/v1/quota", headers=person.headers)).json()["lines"]
    found: dict[str, Any] = next(
        one for one in lines if (one["subject"], one["resource"]) == ("user", "gpus")
    )
    return found


async def test_approved_request_lifts_the_limit_at_once_and_lapses_by_itself(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    await actors.user("olga", role="owner")
    await fleet.limit("user", "ada", gpus=1)
    assert (await fleet.create(ada.headers, gpus=2)).json()["error"] == "quota_exceeded"
    asked = (await _ask(client, ada, amount=4)).json()
    assert (asked["status"], asked["limit_before"], asked["requested_by"]) == ("open", 1, "ada")
    assert await _told(app, "olga") == await _told(app, "root") == ["quota_request.opened"]
    again = await _ask(client, ada, amount=5)
    assert again.json()["error"] == "state_conflict", "one open request for each resource"

    granted = await _decide(client, fleet.admin, asked["id"], "approve", amount=2, until=SOON)
    assert (granted.json()["status"], granted.json()["granted_amount"]) == ("approved", 2)
    assert await _told(app, "ada") == ["quota_request.approved"]
    line = await _gpus(client, ada)
    assert (line["limit"], line["raised_until"]) == (2, SOON)
    assert (await fleet.create(ada.headers, gpus=2)).status_code == 201
    late = await _decide(client, fleet.admin, asked["id"], "refuse", note="too late")
    assert late.json()["error"] == "state_conflict"

    async with app.state.database.sessions() as db:
        for table in ("quotas", "quota_requests"):
            await db.execute(
                text(f"UPDATE {table} SET granted_until = now() WHERE granted_until IS NOT NULL")  # noqa: S608
            )
        await db.commit()
    assert (await _gpus(client, ada))["limit"] == 1, "over by the clock, before any loop"
    await loop.lapse_requests(work)
    found = (await client.get(f"/v1/quota-requests/{asked['id']}", headers=ada.headers)).json()
    assert found["status"] == "lapsed"
    assert await _told(app, "ada") == ["quota_request.approved", "quota_request.lapsed"]
    await loop.lapse_requests(work)
    assert len(await _told(app, "ada")) == 2, "told once"


async def test_request_without_a_time_limit_becomes_the_users_own_limit(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    ada = await actors.user("ada")
    await fleet.limit("user", "ada", gpus=1)
    asked = (await _ask(client, ada)).json()
    await _decide(client, fleet.admin, asked["id"], "approve")
    line = await _gpus(client, ada)
    assert (line["limit"], line["raised_until"]) == (2, None)


async def test_request_is_decided_by_owners_but_not_for_themselves_or_their_customer(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    ada, olga = await actors.user("ada"), await actors.user("olga", role="owner")
    stranger = await actors.user("eve", role="owner", customer="other")
    for kind, name in (("user", "ada"), ("user", "olga"), ("customer", "default")):
        await fleet.limit(kind, name, gpus=1)
    mine = (await _ask(client, ada)).json()["id"]
    theirs = (await _ask(client, olga)).json()["id"]
    above = (await _ask(client, olga, subject="customer")).json()["id"]
    assert (await _ask(client, ada, subject="customer")).status_code == 403
    assert (await _ask(client, ada, subject_id="olga")).status_code == 404
    assert (await _decide(client, ada.headers, mine, "approve")).status_code == 403
    assert (await _decide(client, stranger.headers, mine, "approve")).status_code == 404
    for request_id in (theirs, above):
        assert (await _decide(client, olga.headers, request_id, "approve")).status_code == 403
    refused = await _decide(client, olga.headers, mine, "refuse", note="not this week")
    assert (refused.json()["status"], refused.json()["note"]) == ("refused", "not this week")
    assert await _told(app, "ada") == ["quota_request.refused"]

    async def listed(person: Person) -> set[str]:
        answer = await client.get("/v1/quota-requests", headers=person.headers)
        return {one["id"] for one in answer.json()["items"]}

    assert await listed(ada) == {mine}
    assert await listed(olga) == {mine, theirs, above}
    assert await listed(stranger) == set()


async def test_request_that_asks_for_nothing_is_refused(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    ada = await actors.user("ada")
    assert (await _ask(client, ada)).json()["error"] == "state_conflict", "there is no limit"
    await fleet.limit("user", "ada", gpus=5)
    assert (await _ask(client, ada, amount=5)).json()["error"] == "invalid"
    assert (await _ask(client, ada, amount=9, until="2020-01-01T00:00:00Z")).json()["error"] == "invalid"


async def test_approval_wakes_what_waited_for_its_quota(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, work: Work
) -> None:
    await fleet.host("h1", gpus=1)
    ada, ben = await actors.user("ada"), await actors.user("ben")
    held = (await fleet.create(ben.headers, gpus=1)).json()
    waits = (await fleet.create(ada.headers, gpus=1)).json()
    assert waits["status"] == "pending"
    await fleet.limit("user", "ada", gpus=0)
    await fleet.act(fleet.admin, held["id"], "release")
    await turns.place_pending(work)
    assert (await fleet.get(ada.headers, waits["id"]))["reason"] == "quota"
    asked = (await _ask(client, ada, amount=1)).json()
    with work.database.signals.watch("queue") as watch:
        await _decide(client, fleet.admin, asked["id"], "approve")
        assert await watch.wait(5)
    await turns.place_pending(work)
    assert (await fleet.get(ada.headers, waits["id"]))["status"] == "starting"


async def _age(app: FastAPI, *, minutes: int) -> None:
    """Pretend that all live GPUs have been held for so long, and that limits were passed so long ago."""
    async with app.state.database.sessions() as db:
        await db.execute(text("SET LOCAL session_replication_role = replica"))
        given = {"minutes": minutes}
        await db.execute(
            text("UPDATE allocations SET allocated_at = now() - make_interval(mins => :minutes)"), given
        )
        await db.execute(
            text(
                "UPDATE quotas SET exceeded_at = now() - make_interval(mins => :minutes)"
                " WHERE exceeded_at IS NOT NULL"
            ),
            given,
        )
        await db.commit()


async def test_gpu_hours_warn_first_then_stop_after_the_grace(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    await client.put("/v1/quotas/user/ada", headers=fleet.admin, json={"limits": {"gpu_hours": 10}})
    held = (await fleet.create(ada.headers, "train", gpus=1)).json()
    cpu = (await fleet.create(ada.headers, "cpu", gpus=0)).json()
    await agent.obey()
    await loop.enforce_gpu_hours(work)
    assert await _told(app, "ada") == []

    await _age(app, minutes=9 * 60 + 10)
    await loop.enforce_gpu_hours(work)
    await loop.enforce_gpu_hours(work)
    assert await _told(app, "ada") == ["quota.gpu_hours_warning"], "once"
    await _age(app, minutes=10 * 60 + 1)
    await loop.enforce_gpu_hours(work)
    await loop.enforce_gpu_hours(work)
    assert await _told(app, "ada") == ["quota.gpu_hours_warning", "quota.gpu_hours_used_up"]
    assert (await fleet.get(ada.headers, held["id"]))["status"] == "running", "within the grace"

    await _age(app, minutes=10 * 60 + 20)
    await loop.enforce_gpu_hours(work)
    stopping = await fleet.get(ada.headers, held["id"])
    assert (stopping["status"], stopping["reason"]) == ("stopping", "quota")
    assert (await fleet.get(ada.headers, cpu["id"]))["status"] == "running", "it holds no GPU"
    assert (await _told(app, "ada"))[-1] == "environment.stopped_by_quota"
    await agent.obey()
    assert (await fleet.get(ada.headers, held["id"]))["status"] == "stopped"


async def test_raise_within_the_grace_keeps_what_runs(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await client.put("/v1/quotas/user/ada", headers=fleet.admin, json={"limits": {"gpu_hours": 1}})
    held = (await fleet.create(ada.headers, gpus=1)).json()
    await agent.obey()
    await _age(app, minutes=61)
    await loop.enforce_gpu_hours(work)
    asked = (await _ask(client, ada, resource="gpu_hours", amount=100)).json()
    await _decide(client, fleet.admin, asked["id"], "approve", until=SOON)
    await _age(app, minutes=120)
    await loop.enforce_gpu_hours(work)
    assert (await fleet.get(ada.headers, held["id"]))["status"] == "running"
