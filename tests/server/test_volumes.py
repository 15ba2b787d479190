"""Homes: measured by one host at a time, counted against storage limits, listed, and deleted on proof."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import GIB, Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.quotas import storage
from remotegpu_server.testing import Actors, Person
from remotegpu_server.volumes import loop, measuring


@pytest.fixture
async def ada(actors: Actors) -> Person:
    return await actors.user("ada")


async def sql(app: FastAPI, statement: str, **values: Any) -> list[Any]:
    async with app.state.database.sessions() as db:
        done = await db.execute(text(statement), values)
        await db.commit()
        return [tuple(row) for row in done] if done.returns_rows else []


async def start(fleet: Fleet, who: Person, name: str = "default", **spec: Any) -> str:
    made = await fleet.create(who.headers, name, **spec)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def stop(fleet: Fleet, who: Person, agent: HollowAgent, key: str) -> None:
    await fleet.act(who.headers, key, "stop")
    await agent.obey()


async def asked(agent: HollowAgent) -> list[str]:
    """Ids of the homes that the agent is to measure."""
    found = (await agent.poll()).json()["volume_measurements"]
    return [one["volume_id"] for one in found]


async def tell(agent: HollowAgent, volume: str, size: int | None, **changes: Any) -> httpx.Response:
    body = {"epoch": agent.epoch, "size_bytes": size, **changes}
    return await agent.client.put(f"/v1/agent/volumes/{volume}/size", headers=agent.headers, json=body)


async def measured(work: Work, agent: HollowAgent, size: int) -> str:
    """Whatever its host is asked to measure is that large; the last of them."""
    await loop.ask_for_sizes(work)
    volume = ""
    for volume in await asked(agent):
        assert (await tell(agent, volume, size)).status_code == 204
    assert volume, "nothing was to be measured"
    return volume


async def volumes(fleet: Fleet, headers: dict[str, str], **query: str) -> list[dict[str, Any]]:
    answer = await fleet.client.get("/v1/volumes", headers=headers, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def lines(fleet: Fleet, who: Person, **query: str) -> dict[str, tuple[Any, Any, Any]]:
    """Limit, used and available of storage by level."""
    answer = await fleet.client.get("/v1/quota", headers=who.headers, params=query)
    return {
        one["subject"]: (one["limit"], one["used"], one["available"])
        for one in answer.json()["lines"]
        if one["resource"] == "storage_bytes"
    }


async def age(app: FastAPI, seconds: float) -> None:
    """Let that much time pass since every measurement and every end."""
    back = "UPDATE {0} SET {1} = {1} - make_interval(secs => :s)"
    for table, column in (("volumes", "measure_asked_at"), ("placements", "released_at")):
        await force(app, back.format(table, column), s=seconds)


async def force(app: FastAPI, statement: str, **values: Any) -> None:
    """Change what the database's own guards keep everybody from changing."""
    async with app.state.database.sessions() as db:
        await db.execute(text("SET LOCAL session_replication_role = replica"))
        await db.execute(text(statement), values)
        await db.commit()


async def test_new_home_is_measured_once_then_at_its_pace_and_soon_after_the_end(
    fleet: Fleet, ada: Person, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1")
    key = await start(fleet, ada)
    await agent.obey()
    assert (await lines(fleet, ada))["user"] == (None, None, None), "never measured is not 0"
    revision = (await agent.poll()).json()["revision"]
    await loop.ask_for_sizes(work)
    (volume,) = await asked(agent)
    assert (await agent.poll()).json()["revision"] > revision, "the long poll is woken"
    await loop.ask_for_sizes(work)
    assert await asked(agent) == [volume], "asked until it is answered"
    assert (await tell(agent, volume, 3 * GIB)).status_code == 204
    (shown,) = await volumes(fleet, ada.headers)
    assert (shown["size_bytes"], shown["host_name"], shown["in_use"]) == (3 * GIB, "h1", True)
    assert shown["measured_at"] is not None

    await loop.ask_for_sizes(work)
    assert await asked(agent) == []
    assert (await tell(agent, volume, 1)).status_code == 404, "nobody asked"
    await age(app, 3700)
    assert await measured(work, agent, 4 * GIB) == volume, "something runs on it"
    await stop(fleet, ada, agent, key)
    await loop.ask_for_sizes(work)
    assert await asked(agent) == [], "not at once: somebody may start and stop all the time"
    await age(app, measuring.LEAST_S + 1)
    assert await measured(work, agent, 5 * GIB) == volume, "what was written at the end counts too"
    await age(app, 3700)
    await loop.ask_for_sizes(work)
    assert await asked(agent) == [], "nothing runs on it"
    await age(app, measuring.AT_REST_S)
    assert await measured(work, agent, 5 * GIB) == volume


async def test_size_that_is_not_known_changes_nothing_and_stale_agents_are_refused(
    fleet: Fleet, ada: Person, work: Work
) -> None:
    agent = await fleet.host("h1")
    await start(fleet, ada)
    await agent.obey()
    await loop.ask_for_sizes(work)
    (volume,) = await asked(agent)
    assert (await tell(agent, volume, 5, epoch=agent.epoch - 1)).status_code == 409
    assert (await tell(agent, volume, None, detail="the disk is gone")).status_code == 204
    assert await asked(agent) == []
    (shown,) = await volumes(fleet, ada.headers)
    assert (shown["size_bytes"], shown["measured_at"]) == (None, None)
    assert (await tell(agent, volume, -5)).status_code == 422


async def test_shared_home_is_measured_by_one_host_and_by_another_when_that_is_lost(
    fleet: Fleet, ada: Person, app: FastAPI, work: Work
) -> None:
    one = await fleet.host("h1", shared_home="nfs")
    two = await fleet.host("h2", shared_home="nfs")
    elsewhere = await fleet.host("h3", shared_home="other", gpus=0)
    await start(fleet, ada, gpus=1)
    await start(fleet, ada, "second", gpus=1)
    await loop.ask_for_sizes(work)
    agents = {agent.host_id: agent for agent in (one, two, elsewhere)}
    wanted = {host: found for host, agent in agents.items() if (found := await asked(agent))}
    ((first, (volume,)),) = wanted.items()
    other = two if first == one.host_id else one
    assert (await tell(other, volume, GIB)).status_code == 404, "only who is asked may say"
    await sql(app, "UPDATE hosts SET connection = 'unreachable' WHERE id = :h", h=first)
    await age(app, 3700)
    await loop.ask_for_sizes(work)
    assert await asked(other) == [volume]
    assert await asked(agents[first]) == []
    assert (await tell(other, volume, 7 * GIB)).status_code == 204
    assert (await lines(fleet, ada))["user"][1] == 7 * GIB, "one home, though two hosts reach it"
    await sql(app, "UPDATE hosts SET connection = 'online'")


async def test_host_is_asked_for_few_homes_at_a_time_and_a_lost_one_holds_nobody_up(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "MOST_AT_ONCE", 2)
    lost, agent = await fleet.host("h1"), await fleet.host("h2")
    people = [await actors.user(f"u{number}") for number in range(3)]
    await sql(
        app,
        "INSERT INTO volumes (id, owner_id, host_id) SELECT 'vol-' || u.username || h.name, u.id, h.id"
        " FROM users u CROSS JOIN hosts h WHERE u.id = ANY(:ids)",
        ids=[one.id for one in people],
    )
    await sql(app, "UPDATE hosts SET connection = 'unreachable' WHERE name = 'h1'")
    await loop.ask_for_sizes(work)
    assert len(await asked(lost)) == 0
    first = await asked(agent)
    assert len(first) == 2
    await loop.ask_for_sizes(work)
    assert await asked(agent) == first
    await tell(agent, first[0], GIB)
    await loop.ask_for_sizes(work)
    assert len(await asked(agent)) == 2


async def test_storage_counts_for_the_owner_their_personal_workspace_and_the_customer(
    fleet: Fleet, actors: Actors, ada: Person, app: FastAPI, work: Work
) -> None:
    bob = await actors.user("bob")
    assert (await lines(fleet, ada))["user"] == (None, 0, None), "who has no home uses nothing"
    hosts = [await fleet.host("h1"), await fleet.host("h2")]
    await start(fleet, ada, gpus=1)
    await start(fleet, ada, "more", gpus=1)
    await start(fleet, bob)
    await loop.ask_for_sizes(work)
    for agent in hosts:
        for volume in await asked(agent):
            (owner,) = await sql(app, "SELECT owner_id FROM volumes WHERE id = :v", v=volume)
            await tell(agent, volume, 3 * GIB if owner == (ada.id,) else 10 * GIB)
    found = await lines(fleet, ada)
    assert {level: used for level, (_, used, _) in found.items()} == {
        "user": 6 * GIB,
        "workspace": 6 * GIB,
        "customer": 16 * GIB,
    }
    team = await fleet.client.post("/v1/workspaces", headers=ada.headers, json={"name": "team"})
    assert (await lines(fleet, ada, workspace=team.json()["id"]))["workspace"][1] is None, "it has no homes"
    await force(app, "UPDATE hosts SET operational = 'retired' WHERE name = 'h1'")
    assert (await lines(fleet, ada))["user"][1] == 3 * GIB, "nobody reaches a retired host"
    await force(app, "UPDATE hosts SET operational = 'available' WHERE name = 'h1'")


@pytest.mark.parametrize("level", ["user", "workspace", "customer"])
async def test_start_over_the_storage_limit_is_refused_and_says_what_to_do(
    fleet: Fleet, ada: Person, app: FastAPI, work: Work, level: str
) -> None:
    agent = await fleet.host("h1", gpus=2)
    running = await start(fleet, ada, gpus=1)
    await agent.obey()
    await measured(work, agent, 12 * GIB)
    ((subject,),) = await sql(
        app,
        "SELECT CASE :level WHEN 'user' THEN u.id WHEN 'workspace' THEN w.id ELSE u.customer_id END"
        " FROM users u JOIN workspaces w ON w.personal_of = u.id WHERE u.id = :ada",
        level=level,
        ada=ada.id,
    )
    changed = await fleet.client.put(
        f"/v1/quotas/{level}/{subject}", headers=fleet.admin, json={"limits": {"storage_bytes": 10 * GIB}}
    )
    (over,) = changed.json()["over"]
    assert over["over_by"] == 2 * GIB
    assert "What runs goes on; nothing new starts until 2 GiB are freed." in over["message"]
    refused = await fleet.create(ada.headers, "more")
    assert (refused.status_code, refused.json()["error"]) == (409, "quota_exceeded")
    said = refused.json()
    assert said["detail"].startswith(f"Homes of {level} ")
    assert said["detail"].endswith("may take 10 GiB of disk; 12 GiB are used.")
    assert "remotegpu volume delete" in said["hint"]
    assert (said["data"]["subject"], said["data"]["resource"]) == (level, "storage_bytes")
    assert (await fleet.get(ada.headers, running))["status"] == "running", "what runs goes on"
    await stop(fleet, ada, agent, running)
    again = await fleet.act(ada.headers, running, "start")
    assert again.json()["error"] == "quota_exceeded"
    await fleet.limit(level, subject, storage_bytes=20 * GIB)
    assert (await fleet.act(ada.headers, running, "start")).status_code == 200


async def test_what_if_and_explanation_say_the_same(fleet: Fleet, ada: Person, work: Work) -> None:
    agent = await fleet.host("h1", gpus=2)
    await start(fleet, ada)
    await agent.obey()
    await measured(work, agent, 8 * GIB)
    await fleet.limit("user", "ada", storage_bytes=10 * GIB)

    async def check(**amounts: float) -> dict[str, Any]:
        body = {"amounts": amounts}
        answer = await fleet.client.post("/v1/quotas:check", headers=ada.headers, json=body)
        found: dict[str, Any] = answer.json()
        return found

    assert (await check(environments=1))["allowed"]
    assert (await check(storage_bytes=2 * GIB))["allowed"]
    verdict = await check(storage_bytes=3 * GIB)
    assert (verdict["allowed"], verdict["binding"]["resource"]) == (False, "storage_bytes")
    assert "8 GiB are used and this request needs 3 GiB more" in verdict["message"]
    await fleet.limit("user", "ada", storage_bytes=8 * GIB)
    assert not (await check(environments=1))["allowed"], "at the limit nothing is left"
    body = {"image": "base"}
    told = await fleet.client.post("/v1/placements:explain", headers=ada.headers, json=body)
    assert (told.json()["outcome"], told.json()["error"]) == ("refused", "quota_exceeded")


async def test_queued_start_waits_for_its_storage_and_goes_on_when_files_are_gone(
    fleet: Fleet, ada: Person, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    running = await start(fleet, ada, gpus=1)
    await agent.obey()
    waits = await start(fleet, ada, "waits", gpus=1)
    await measured(work, agent, 12 * GIB)
    await fleet.limit("user", "ada", storage_bytes=10 * GIB)
    await stop(fleet, ada, agent, running)
    await turns.place_pending(work)
    seen = await fleet.get(ada.headers, waits)
    assert (seen["status"], seen["reason"]) == ("pending", "quota")
    assert "12 GiB are used" in seen["message"]
    await age(app, 90000)
    await measured(work, agent, 9 * GIB)
    await turns.place_pending(work)
    assert (await fleet.get(ada.headers, waits))["status"] == "starting"


async def test_starts_at_the_limit_are_all_refused_and_none_passes_a_limit_that_was_lowered(
    fleet: Fleet, ada: Person, app: FastAPI, work: Work
) -> None:
    """Starts take no disk, so many may pass at once; but none that begins after the answer to the change."""
    agent = await fleet.host("h1", gpus=0)
    await start(fleet, ada)
    await agent.obey()
    await measured(work, agent, 12 * GIB)
    await fleet.limit("user", "ada", storage_bytes=12 * GIB)
    answers = await asyncio.gather(*(fleet.create(ada.headers, f"e{n}") for n in range(6)))
    assert {one.json().get("error") for one in answers} == {"quota_exceeded"}

    await fleet.limit("user", "ada", storage_bytes=13 * GIB)
    barrier = asyncio.Barrier(5)

    async def lower() -> None:
        await barrier.wait()
        await fleet.limit("user", "ada", storage_bytes=11 * GIB)

    async def begin(number: int) -> httpx.Response:
        await barrier.wait()
        return await fleet.create(ada.headers, f"raced-{number}")

    _, *raced = await asyncio.gather(lower(), *(begin(number) for number in range(4)))
    assert {one.status_code for one in raced} <= {201, 409}
    rows = await sql(
        app,
        "SELECT p.id FROM placements p JOIN quotas q ON q.subject_id = p.user_id"
        " WHERE q.resource = 'storage_bytes' AND p.placed_at > q.changed_at",
    )
    begun_after = [row for row in rows if row]
    late = await asyncio.gather(*(fleet.create(ada.headers, f"late-{number}") for number in range(4)))
    assert {one.json().get("error") for one in late} == {"quota_exceeded"}
    assert len(begun_after) <= sum(one.status_code == 201 for one in raced)


async def notices(fleet: Fleet, who: Person) -> list[tuple[str, str]]:
    answer = await fleet.client.get("/v1/notifications", headers=who.headers)
    return [(one["kind"], one["message"]) for one in reversed(answer.json()["items"])]


async def test_owner_is_told_once_at_ninety_percent_and_at_the_limit_and_again_only_after_a_fall(
    fleet: Fleet, actors: Actors, ada: Person, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1")
    await start(fleet, ada)
    await agent.obey()
    await fleet.limit("user", "ada", storage_bytes=100 * GIB)

    async def at(size: int) -> list[str]:
        await age(app, 90000)
        await measured(work, agent, size * GIB)
        await storage.tell_of_storage(work)
        await storage.tell_of_storage(work)
        return [kind for kind, _ in await notices(fleet, ada) if kind.startswith("quota.")]

    warning, exceeded = "quota.storage_warning", "quota.storage_exceeded"
    assert await at(89) == []
    assert await at(91) == [warning]
    assert await at(86) == [warning]
    assert await at(92) == [warning], "it wavers"
    assert await at(101) == [warning, exceeded]
    assert await at(96) == [warning, exceeded]
    assert await at(100) == [warning, exceeded], "it wavers"
    assert await at(94) == [warning, exceeded]
    assert await at(100) == [warning, exceeded, exceeded]
    assert await at(10) == [warning, exceeded, exceeded]
    assert await at(95) == [warning, exceeded, exceeded, warning]
    (message,) = {text for kind, text in await notices(fleet, ada) if kind == exceeded and "101" in text}
    assert message.startswith("Homes take 101 GiB of the 100 GiB that this user may use. What runs goes on;")
    events = await sql(app, "SELECT kind FROM events WHERE kind LIKE 'quota.storage%' ORDER BY id")
    assert [kind for (kind,) in events] == [warning, exceeded, exceeded, warning]
    olga = await actors.user("olga", role="owner")
    await fleet.limit("customer", "default", storage_bytes=50 * GIB)
    await storage.tell_of_storage(work)
    assert [kind for kind, _ in await notices(fleet, olga)] == [exceeded], "owners of the customer"
    await storage.tell_of_storage(work)
    assert len(await notices(fleet, olga)) == 1


async def remove(fleet: Fleet, headers: dict[str, str], volume: str) -> httpx.Response:
    return await fleet.client.delete(f"/v1/volumes/{volume}", headers=headers)


async def answer_removal(agent: HollowAgent, *, removed: bool) -> None:
    (removal,) = (await agent.poll()).json()["volume_removals"]
    body = {"epoch": agent.epoch, "removed": removed, "detail": "" if removed else "busy"}
    path = f"/v1/agent/volume-removals/{removal['id']}"
    answer = await agent.client.put(path, headers=agent.headers, json=body)
    assert answer.status_code == 204, answer.text


async def test_home_is_deleted_on_proof_and_its_place_gets_a_new_one(
    fleet: Fleet, ada: Person, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1")
    key = await start(fleet, ada)
    await agent.obey()
    volume = await measured(work, agent, 12 * GIB)
    refused = await remove(fleet, ada.headers, volume)
    assert (refused.status_code, refused.json()["error"]) == (409, "in_use")
    await stop(fleet, ada, agent, key)
    asked_for = await remove(fleet, ada.headers, volume)
    assert (asked_for.status_code, asked_for.json()["status"]) == (202, "removing")
    assert (await lines(fleet, ada))["user"][1] == 12 * GIB, "it counts until it is gone"
    await fleet.act(ada.headers, key, "start")
    (desired,) = (await agent.desired()).values()
    assert desired["home"]["volume_id"] != volume, "nothing starts on what is being removed"
    await answer_removal(agent, removed=True)
    (shown,) = await volumes(fleet, ada.headers)
    assert (shown["id"], shown["size_bytes"]) == (desired["home"]["volume_id"], None)
    gone = (await fleet.client.get(f"/v1/volumes/{volume}", headers=ada.headers)).json()
    assert (gone["status"], gone["in_use"]) == ("removed", False)
    assert (await remove(fleet, ada.headers, volume)).json()["status"] == "removed", "repeating it is fine"
    assert (await agent.poll()).json()["volume_removals"] == []
    kinds = await sql(app, "SELECT kind FROM events WHERE subject_id = :v ORDER BY id", v=volume)
    assert kinds == [("volume.removal_requested",), ("volume.removed",)]


async def test_removal_that_fails_is_given_up_told_and_asked_for_again(
    fleet: Fleet, ada: Person, work: Work
) -> None:
    agent = await fleet.host("h1")
    key = await start(fleet, ada)
    await agent.obey()
    volume = await measured(work, agent, GIB)
    await stop(fleet, ada, agent, key)
    assert (await remove(fleet, fleet.admin, volume)).status_code == 202
    for _ in range(5):
        await answer_removal(agent, removed=False)
    assert (await agent.poll()).json()["volume_removals"] == []
    kinds = [kind for kind, _ in await notices(fleet, ada)]
    assert kinds == ["volume.removal_requested", "volume.removal_failed"], "an admin deleted it"
    (shown,) = await volumes(fleet, ada.headers)
    assert (shown["status"], shown["removal_detail"]) == ("removing", "busy")
    assert (await remove(fleet, ada.headers, volume)).status_code == 202
    await answer_removal(agent, removed=True)
    assert await volumes(fleet, ada.headers) == []


async def test_shared_home_is_removed_by_a_host_that_reaches_it_and_waits_for_none(
    fleet: Fleet, ada: Person, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", shared_home="nfs")
    key = await start(fleet, ada)
    await agent.obey()
    volume = await measured(work, agent, GIB)
    await stop(fleet, ada, agent, key)
    await sql(app, "UPDATE hosts SET connection = 'unreachable'")
    refused = await remove(fleet, ada.headers, volume)
    assert (refused.status_code, refused.json()["error"]) == (409, "state_conflict")
    await sql(app, "UPDATE hosts SET connection = 'online'")
    assert (await remove(fleet, ada.headers, volume)).status_code == 202
    (removal,) = (await agent.poll()).json()["volume_removals"]
    assert (removal["volume_id"], removal["shared"]) == (volume, True)


async def test_start_and_deletion_at_once_never_leave_work_on_a_home_that_goes(
    fleet: Fleet, ada: Person, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1")
    key = await start(fleet, ada)
    await agent.obey()
    for _ in range(10):
        await stop(fleet, ada, agent, key)
        (shown,) = [one for one in await volumes(fleet, ada.headers) if one["status"] == "present"]
        started, removed = await asyncio.gather(
            fleet.act(ada.headers, key, "start"), remove(fleet, ada.headers, shown["id"])
        )
        assert (started.status_code, removed.status_code) in {(200, 202), (200, 409)}
        rows = await sql(
            app,
            "SELECT v.removal_requested_at FROM placements p JOIN volumes v ON v.id = p.volume_id"
            " WHERE p.released_at IS NULL",
        )
        assert rows == [(None,)]
        await agent.obey()


async def test_list_shows_each_their_own_and_owners_and_admins_more(
    fleet: Fleet, actors: Actors, ada: Person
) -> None:
    await fleet.host("h1", gpus=0)
    eve = await actors.user("eve", customer="other")
    olga = await actors.user("olga", role="owner")
    for person in (ada, eve):
        await start(fleet, person)
    assert [one["owner"] for one in await volumes(fleet, ada.headers)] == ["ada"]
    assert [one["owner"] for one in await volumes(fleet, olga.headers)] == ["ada"]
    assert [one["owner"] for one in await volumes(fleet, fleet.admin)] == ["ada", "eve"]
    assert [one["owner"] for one in await volumes(fleet, fleet.admin, owner="eve", host="h1")] == ["eve"]
    assert await volumes(fleet, ada.headers, owner="eve") == []
    (of_eve,) = await volumes(fleet, eve.headers)
    assert (await remove(fleet, ada.headers, of_eve["id"])).status_code == 404
