"""Hosts lent to a tenant: no two at once, reminders, and a clean-up that waits for its proofs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.dedications import loop
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors


def _in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


async def _lend(fleet: Fleet, **body: Any) -> httpx.Response:
    wish = {"host": "h1", "customer": "physics", "ends_at": _in_days(30)} | body
    return await fleet.client.post("/v1/dedications", headers=fleet.admin, json=wish)


async def _get(fleet: Fleet, dedication: str) -> dict[str, Any]:
    answer = await fleet.client.get(f"/v1/dedications/{dedication}", headers=fleet.admin)
    found: dict[str, Any] = answer.json()
    return found


async def _sql(app: FastAPI, statement: str, **values: Any) -> Any:
    async with app.state.database.sessions() as db:
        answer = await db.execute(text(statement), values)
        rows = answer.all() if answer.returns_rows else []
        await db.commit()
        return rows


async def _move_end(app: FastAPI, days: float) -> None:
    """As if the end were so many days away; the beginning is far enough back."""
    await _sql(
        app,
        "UPDATE dedications SET starts_at = now() - interval '90 days',"
        " ends_at = date_trunc('second', now()) + make_interval(secs => :s)",
        s=days * 86400,
    )


async def test_periods_of_one_host_never_overlap_even_for_calls_at_the_same_time(
    fleet: Fleet, actors: Actors
) -> None:
    await fleet.host("h1")
    await fleet.host("h2")
    await actors.customer("physics")
    starts, ends = _in_days(1), _in_days(2)
    answers = await asyncio.gather(*(_lend(fleet, starts_at=starts, ends_at=ends) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 4
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["error"] == "state_conflict"
    assert refused.json()["data"]["free_from"]
    assert (await _lend(fleet, starts_at=ends, ends_at=_in_days(3))).status_code == 201, "one after the other"
    assert (await _lend(fleet, host="h2", starts_at=starts, ends_at=ends)).status_code == 201
    assert (await _lend(fleet, host="h2", starts_at=_in_days(5), ends_at=_in_days(4))).status_code == 422
    made = next(answer for answer in answers if answer.status_code == 201).json()["id"]
    longer = await fleet.client.post(
        f"/v1/dedications/{made}:extend", headers=fleet.admin, json={"ends_at": _in_days(2.5)}
    )
    assert longer.status_code == 409


async def test_lent_host_works_for_its_tenant_alone(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1")
    ada = await actors.user("ada", customer="physics")
    eve = await actors.user("eve")
    lent = (await _lend(fleet)).json()
    assert lent["status"] == "active"
    stranger = await fleet.create(eve.headers, gpus=1)
    assert stranger.json().get("status") != "starting"
    assert (await fleet.create(ada.headers, gpus=1)).json()["status"] == "starting"
    shown = await fleet.client.get("/v1/dedications", headers=ada.headers)
    assert [one["id"] for one in shown.json()["items"]] == [lent["id"]]
    hidden = await fleet.client.get(f"/v1/dedications/{lent['id']}", headers=eve.headers)
    assert hidden.status_code == 404


async def test_host_with_work_of_others_is_not_lent_now(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1")
    await actors.customer("physics")
    eve = await actors.user("eve")
    await fleet.create(eve.headers, gpus=1)
    refused = await _lend(fleet)
    assert (refused.status_code, refused.json()["error"]) == (409, "in_use")


async def test_reminders_come_three_times_and_once_for_each_day(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1")
    owner = await actors.user("ada", customer="physics", role="owner")
    await actors.user("bob", customer="physics")
    lent = (await _lend(fleet)).json()["id"]
    for days in (8, 6.9, 6, 2.9, 2, 0.9, 0.5):
        await _move_end(app, days)
        # The clock moves, not the end: what was told belongs to the end as it is now.
        await _sql(
            app,
            "UPDATE notifications n SET dedupe_key = 'dedication:' || d.id || ':' || :end || ':'"
            " || split_part(n.dedupe_key, ':', -1) FROM dedications d WHERE n.dedupe_key LIKE 'dedication:%'",
            end=(await _get(fleet, lent))["ends_at"].replace("Z", "+00:00"),
        )
        for _ in range(2):
            await loop.follow(work)
    told = await _sql(app, "SELECT user_id, message FROM notifications WHERE kind = 'dedication.ends_soon'")
    assert {row.user_id for row in told} == {owner.id}
    assert sorted(row.message[:9] for row in told) == ["In 1 days", "In 3 days", "In 7 days"]


async def test_host_is_cleaned_step_by_step_on_proof(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada", customer="physics", role="owner")
    lent = (await _lend(fleet)).json()["id"]
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.obey()
    path = f"/v1/dedications/{lent}:reclaim"
    refused = await fleet.client.post(path, headers=fleet.admin, json={"reason": "needed"})
    assert (refused.status_code, refused.json()["error"]) == (409, "in_use")
    await fleet.client.post(path, headers=fleet.admin, json={"reason": "needed", "force": True})
    await loop.follow(work)
    await loop.follow(work)
    seen = await _get(fleet, lent)
    assert [step["status"] for step in seen["steps"]] == ["running", "pending", "pending", "pending"]
    stopping = await fleet.get(ada.headers, key)
    assert (stopping["status"], stopping["reason"]) == ("stopping", "dedication_ended")
    await agent.obey()
    await loop.follow(work)
    seen = await _get(fleet, lent)
    assert [step["status"] for step in seen["steps"]] == ["done", "done", "running", "pending"]
    waits = (await fleet.create(ada.headers, "more", gpus=1)).json()
    assert waits.get("status") != "starting"
    (removal,) = (await agent.poll()).json()["volume_removals"]
    await _answer(fleet, agent, removal["id"], removed=False)
    await loop.follow(work)
    assert (await _get(fleet, lent))["steps"][2]["status"] == "running"
    await _answer(fleet, agent, removal["id"], removed=True)
    await loop.follow(work)
    assert (await _get(fleet, lent))["steps"][3]["detail"] == "Waits for the host's next heartbeat."
    await agent.heartbeat()
    await loop.follow(work)
    seen = await _get(fleet, lent)
    assert (seen["status"], {step["status"] for step in seen["steps"]}) == ("ended", {"done"})
    host = (await fleet.client.get("/v1/hosts/h1", headers=fleet.admin)).json()
    assert (host["operational"], host["ready"]) == ("available", True)
    assert not await _sql(
        app,
        "SELECT 1 FROM tokens WHERE revoked_at IS NULL AND environment_id = :e",
        e=key,
    )


async def test_clean_up_leaves_shared_homes_and_says_which(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", shared_home="nas")
    ada = await actors.user("ada", customer="physics", role="owner")
    lent = (await _lend(fleet)).json()["id"]
    await fleet.create(ada.headers, gpus=1)
    await agent.obey()
    path = f"/v1/dedications/{lent}:reclaim"
    await fleet.client.post(path, headers=fleet.admin, json={"reason": "needed", "force": True})
    await loop.follow(work)
    await agent.obey()
    await loop.follow(work)
    assert (await agent.poll()).json()["volume_removals"] == []
    step = (await _get(fleet, lent))["steps"][2]
    assert (step["name"], step["status"]) == ("wipe_homes", "done")
    assert "1 under the shared root nas" in step["detail"]
    assert await _sql(app, "SELECT 1 FROM volumes WHERE shared_home = 'nas'")


async def _answer(fleet: Fleet, agent: HollowAgent, removal: str, *, removed: bool) -> None:
    answer = await fleet.client.put(
        f"/v1/agent/volume-removals/{removal}",
        headers=agent.headers,
        json={"epoch": agent.epoch, "removed": removed, "detail": "" if removed else "busy"},
    )
    assert answer.status_code == 204, answer.text


async def test_period_ends_in_grace_then_in_clean_up_and_gives_up_after_a_bound(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada", customer="physics", role="owner")
    lent = (await _lend(fleet)).json()["id"]
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.obey()
    await _move_end(app, -0.01)
    await loop.follow(work)
    assert (await _get(fleet, lent))["status"] == "grace"
    assert (await fleet.get(ada.headers, key))["status"] == "running"
    await _move_end(app, -2)
    for _ in range(2):
        await loop.follow(work)
    assert (await _get(fleet, lent))["status"] == "cleaning"
    await agent.obey()
    await loop.follow(work)
    (removal,) = (await agent.poll()).json()["volume_removals"]
    for _ in range(5):
        await _answer(fleet, agent, removal["id"], removed=False)
    await loop.follow(work)
    failed = (await _get(fleet, lent))["steps"][2]
    assert (failed["status"], "busy" in failed["detail"]) == ("failed", True)
    assert (await agent.poll()).json()["volume_removals"] == []
    again = await fleet.client.post(
        f"/v1/dedications/{lent}:reclaim", headers=fleet.admin, json={"reason": "mended"}
    )
    assert again.json()["steps"][2]["status"] == "pending"
    await _answer(fleet, agent, removal["id"], removed=True)
    await loop.follow(work)
    await agent.heartbeat()
    await loop.follow(work)
    assert (await _get(fleet, lent))["status"] == "ended"


async def test_planned_dedication_begins_in_time_and_one_that_did_not_begin_is_cancelled(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1")
    await actors.customer("physics")
    lent = (await _lend(fleet, starts_at=_in_days(1))).json()
    assert lent["status"] == "scheduled"
    await _sql(app, "UPDATE dedications SET starts_at = now() - interval '1 s'")
    await loop.follow(work)
    assert (await _get(fleet, lent["id"]))["status"] == "active"
    later = (await _lend(fleet, starts_at=_in_days(40), ends_at=_in_days(50))).json()["id"]
    ended = await fleet.client.post(f"/v1/dedications/{later}:end", headers=fleet.admin, json={})
    assert ended.json()["status"] == "cancelled"
    assert (await _lend(fleet, starts_at=_in_days(41), ends_at=_in_days(42))).status_code == 201
