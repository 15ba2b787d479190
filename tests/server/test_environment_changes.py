"""Restart, rename, extend, access: what may be done with an environment that exists."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.environments import stop_loop
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors

ADDRESS = "http://192.0.2.1:40000"


async def running(fleet: Fleet, agent: HollowAgent, headers: dict[str, str], **spec: Any) -> dict[str, Any]:
    made = await fleet.create(headers, **spec)
    assert made.status_code == 201, made.text
    await agent.obey()
    found = await fleet.get(headers, made.json()["id"])
    assert found["status"] == "running"
    return found


async def extend(client: httpx.AsyncClient, headers: dict[str, str], key: str, by_s: float) -> httpx.Response:
    return await client.post(f"/v1/environments/{key}:extend", headers=headers, json={"by_s": by_s})


async def set_platform(app: FastAPI, key: str, value: float) -> None:
    async with app.state.database.sessions() as db:
        await db.execute(
            text("INSERT INTO platform_settings (key, value, changed_by) VALUES (:k, to_jsonb(:v), 'test')"),
            {"k": key, "v": value},
        )
        await db.commit()


async def shift(app: FastAPI, key: str, column: str, seconds: float) -> None:
    """Move a time of an environment, as if so many seconds had gone by."""
    async with app.state.database.sessions() as db:
        await db.execute(
            text(f"UPDATE environments SET {column} = {column} - make_interval(secs => :s) WHERE id = :id"),  # noqa: S608
            {"id": key, "s": seconds},
        )
        await db.commit()


async def told(client: httpx.AsyncClient, headers: dict[str, str], key: str) -> list[str]:
    """Kinds of the events of an environment that are no moves of its status, oldest first."""
    found = await client.get(
        "/v1/events", headers=headers, params={"subject_type": "environment", "subject_id": key, "limit": 200}
    )
    return [event["kind"] for event in found.json()["items"] if event["kind"] != "environment.status"]


async def test_restart_keeps_host_and_gpus_and_fences_the_old_generation(
    fleet: Fleet, actors: Actors
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    before = await running(fleet, agent, ada.headers, gpus=1)
    old_token = (await agent.desired())[before["id"]]["secret_env"]["REMOTEGPU_TOKEN"]
    answer = await fleet.act(ada.headers, before["id"], "restart")
    assert answer.status_code == 200, answer.text
    after = answer.json()
    assert (after["status"], after["reason"], after["generation"]) == ("starting", "restarted", 2)
    assert (after["host_id"], after["address"]) == (before["host_id"], None)
    assert [gpu["uuid"] for gpu in after["allocated_gpus"]] == [
        gpu["uuid"] for gpu in before["allocated_gpus"]
    ]
    workload = (await agent.desired())[before["id"]]
    assert (workload["generation"], workload["desired"]) == (2, "running")
    assert workload["secret_env"]["REMOTEGPU_TOKEN"] != old_token
    late = await agent.observe(before["id"], "running", generation=1, address=ADDRESS)
    assert (late.status_code, late.json()["error"]) == (409, "generation_stale")
    await agent.obey()
    assert (await fleet.get(ada.headers, before["id"]))["status"] == "running"


async def test_restart_of_one_that_does_not_run_is_refused_with_what_to_do(
    fleet: Fleet, actors: Actors
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    key = (await running(fleet, agent, ada.headers))["id"]
    await fleet.act(ada.headers, key, "stop")
    assert (await fleet.act(ada.headers, key, "restart")).json()["error"] == "state_conflict"
    await agent.obey()
    refused = await fleet.act(ada.headers, key, "restart")
    assert refused.status_code == 409
    assert "env start" in refused.json()["hint"]


async def test_rename_to_a_taken_name_is_refused_and_a_hub_servers_name_stays(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    first = (await fleet.create(ada.headers, "one")).json()
    await fleet.create(ada.headers, "two")
    path = f"/v1/environments/{first['id']}"
    taken = await client.patch(path, headers=ada.headers, json={"name": "two"})
    assert (taken.status_code, taken.json()["error"]) == (409, "name_taken")
    renamed = await client.patch(path, headers=ada.headers, json={"name": "three", "display_name": "3"})
    assert (renamed.json()["name"], renamed.json()["display_name"]) == ("three", "3")

    hub = {"Authorization": f"Bearer {await actors.hub()}", "X-RemoteGPU-On-Behalf-Of": "ada"}
    served = (await fleet.create(hub, "default")).json()
    path = f"/v1/environments/{served['id']}"
    refused = await client.patch(path, headers=ada.headers, json={"name": "mine"})
    assert (refused.status_code, refused.json()["error"]) == (409, "state_conflict")
    assert "display_name" in refused.json()["hint"]
    kept = await client.patch(path, headers=ada.headers, json={"display_name": "Mine", "name": "default"})
    assert (kept.json()["name"], kept.json()["display_name"]) == ("default", "Mine")


async def test_access_tells_how_to_enter_and_holds_no_credential(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada, eve = await actors.user("ada"), await actors.user("eve")
    hub = {"Authorization": f"Bearer {await actors.hub()}", "X-RemoteGPU-On-Behalf-Of": "ada"}
    secrets = {
        "JUPYTERHUB_API_TOKEN": "canary-1",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
        "JUPYTERHUB_CLIENT_ID": "canary-2",
    }
    made = (await fleet.create(hub, secret_env=secrets)).json()
    path = f"/v1/environments/{made['id']}/access"
    early = await client.get(path, headers=ada.headers)
    assert (early.status_code, early.json()["error"]) == (409, "state_conflict")
    workload = (await agent.desired())[made["id"]]
    endpoints = {"ssh": "192.0.2.1:40022", "desktop": "192.0.2.1:40060", "app": "192.0.2.1:40070"}
    await agent.observe(made["id"], "running", address=ADDRESS, endpoints=endpoints)

    answer = await client.get(path, headers=ada.headers)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["ssh"] == {
        "host": "192.0.2.1",
        "port": 40022,
        "username": "jovyan",
        "command": "ssh -p 40022 jovyan@192.0.2.1",
    }
    assert found["jupyter"] == {"url": None, "path": "/user/ada/", "address": ADDRESS}
    assert (found["desktop"]["port"], [port["name"] for port in found["ports"]]) == (40060, ["app"])
    assert "ssh-key add" in found["ssh_note"]
    assert "canary" not in answer.text
    assert workload["secret_env"]["REMOTEGPU_TOKEN"] not in answer.text
    assert (await client.get(path, headers=eve.headers)).status_code == 404

    await fleet.act(ada.headers, made["id"], "stop")
    assert (await client.get(path, headers=ada.headers)).status_code == 409


async def test_stop_time_warns_twice_and_then_stops_with_its_reason(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    at = datetime.now(UTC) + timedelta(hours=1)
    key = (await running(fleet, agent, ada.headers, gpus=1, stop_at=at.isoformat()))["id"]
    assert datetime.fromisoformat((await fleet.get(ada.headers, key))["stops_at"]) == at
    await stop_loop.follow_deadlines(work)
    assert await told(client, ada.headers, key) == ["environment.created"]
    for seconds, warnings in ((1900, 1), (1500, 2), (0, 2)):
        await shift(app, key, "deadline_at", seconds)
        await shift(app, key, "stop_at", seconds)
        await stop_loop.follow_deadlines(work)
        assert (await told(client, ada.headers, key)).count("environment.stops_soon") == warnings
    await shift(app, key, "deadline_at", 600)
    await shift(app, key, "stop_at", 600)
    await stop_loop.follow_deadlines(work)
    stopping = await fleet.get(ada.headers, key)
    assert (stopping["status"], stopping["reason"]) == ("stopping", "stop_at")
    await agent.obey()
    stopped = await fleet.get(ada.headers, key)
    assert (stopped["status"], stopped["reason"], stopped["stops_at"]) == ("stopped", "stop_at", None)
    async with app.state.database.sessions() as db:
        kinds = (
            await db.execute(text("SELECT kind FROM notifications WHERE user_id = :u"), {"u": ada.id})
        ).scalars()
        assert sorted(kinds) == ["environment.ended", "environment.stops_soon", "environment.stops_soon"]


async def test_stop_time_of_a_waiting_request_takes_it_out_of_the_queue(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await fleet.create(ada.headers, "holder", gpus=1)
    at = datetime.now(UTC) + timedelta(seconds=60)
    waits = (await fleet.create(ada.headers, "waits", gpus=1, stop_at=at.isoformat())).json()
    assert waits["status"] == "pending"
    await shift(app, waits["id"], "deadline_at", 61)
    await shift(app, waits["id"], "stop_at", 61)
    await stop_loop.follow_deadlines(work)
    after = await fleet.get(ada.headers, waits["id"])
    assert (after["status"], after["reason"]) == ("stopped", "stop_at")


async def test_lifetime_counts_from_readiness_and_is_extended_up_to_the_ceiling(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    await set_platform(app, "environments.max_lifetime_s", 7200)
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    too_long = await fleet.create(ada.headers, "long", max_lifetime_s=7201)
    assert (too_long.status_code, too_long.json()["error"]) == (422, "invalid")
    found = await running(fleet, agent, ada.headers, max_lifetime_s=3600)
    key, started = found["id"], datetime.fromisoformat(found["started_at"])
    assert datetime.fromisoformat(found["stops_at"]) == started + timedelta(seconds=3600)
    longer = await extend(client, ada.headers, key, 3000)
    assert datetime.fromisoformat(longer.json()["stops_at"]) == started + timedelta(seconds=6600)
    refused = await extend(client, ada.headers, key, 601)
    assert (refused.status_code, refused.json()["data"]["max_by_s"]) == (409, 600.0)
    assert (await extend(client, ada.headers, key, 600)).status_code == 200
    await shift(app, key, "deadline_at", 7201)
    await stop_loop.follow_deadlines(work)
    assert (await fleet.get(ada.headers, key))["reason"] == "lifetime"
    await agent.obey()
    again = await fleet.act(ada.headers, key, "start")
    assert (again.json()["max_lifetime_s"], again.json()["stops_at"]) == (3600, None)


async def test_environment_without_a_lifetime_gets_the_ceiling(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    await set_platform(app, "environments.max_lifetime_s", 7200)
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    assert (await fleet.create(ada.headers)).json()["max_lifetime_s"] == 7200


async def test_smallest_of_the_ceilings_of_platform_workspace_and_image_binds_and_is_named(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    await set_platform(app, "environments.max_lifetime_s", 7200)
    agent = await fleet.host("h1", gpus=1)
    boss, ada = await actors.user("boss", role="owner"), await actors.user("ada")
    (space,) = (await client.get("/v1/workspaces", headers=ada.headers)).json()["items"]
    path = f"/v1/workspaces/{space['id']}"
    own = await client.patch(path, headers=ada.headers, json={"max_lifetime_s": 90000})
    assert (own.status_code, own.json()["error"]) == (403, "forbidden")

    async def refused() -> tuple[str, float]:
        asked = {"image": "base", "max_lifetime_s": 90000}
        answers = [
            await client.post("/v1/environments", headers=ada.headers, json=asked | {"name": "long"}),
            await client.post("/v1/placements:explain", headers=ada.headers, json=asked),
        ]
        assert [answer.status_code for answer in answers] == [422, 422]
        assert answers[0].json()["detail"] == answers[1].json()["detail"]
        data = answers[0].json()["data"]
        return data["binding"], data["max_lifetime_s"]

    assert await refused() == ("platform", 7200)
    limited = await client.patch(path, headers=boss.headers, json={"max_lifetime_s": 5000})
    assert limited.json()["max_lifetime_s"] == 5000
    assert await refused() == ("workspace", 5000)
    await client.patch("/v1/images/base", headers=fleet.admin, json={"max_lifetime_s": 4000})
    assert await refused() == ("image", 4000)
    found = await running(fleet, agent, ada.headers)
    assert found["max_lifetime_s"] == 4000
    late = await extend(client, ada.headers, found["id"], 1)
    assert "what starts from the image base runs 4000 s at most" in late.json()["detail"]
    image = await client.patch("/v1/images/base", headers=fleet.admin, json={"max_lifetime_s": 0})
    assert image.json()["max_lifetime_s"] is None
    longer = await extend(client, ada.headers, found["id"], 1001)
    assert (longer.status_code, longer.json()["data"]["max_by_s"]) == (409, 1000.0)
    assert "in the workspace" in longer.json()["detail"]
    assert (await extend(client, ada.headers, found["id"], 1000)).status_code == 200
    await fleet.act(ada.headers, found["id"], "stop")
    await agent.obey()
    await client.patch(path, headers=boss.headers, json={"max_lifetime_s": 600})
    again = await fleet.act(ada.headers, found["id"], "start")
    assert again.json()["max_lifetime_s"] == 600


async def test_extend_of_one_that_nothing_stops_or_that_is_stopped_is_refused(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    key = (await running(fleet, agent, ada.headers))["id"]
    assert (await extend(client, ada.headers, key, 60)).json()["error"] == "state_conflict"
    await fleet.act(ada.headers, key, "stop")
    await agent.obey()
    assert (await extend(client, ada.headers, key, 60)).json()["error"] == "state_conflict"


@pytest.mark.parametrize("verb", ["restart", "extend"])
async def test_verbs_of_others_environments_are_not_found(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, verb: str
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada, eve = await actors.user("ada"), await actors.user("eve")
    key = (await running(fleet, agent, ada.headers))["id"]
    answer = await client.post(
        f"/v1/environments/{key}:{verb}",
        headers=eve.headers,
        json={"by_s": 60} if verb == "extend" else None,
    )
    assert answer.status_code == 404


async def test_two_renames_to_one_name_at_once_have_one_winner(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    ids = [(await fleet.create(ada.headers, name)).json()["id"] for name in ("one", "two")]
    for number in range(10):
        answers = await asyncio.gather(
            *(
                client.patch(f"/v1/environments/{key}", headers=ada.headers, json={"name": f"taken-{number}"})
                for key in ids
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200, 409]


async def test_stop_against_restart_at_once_ends_in_one_of_the_two_and_holds_one_placement(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    key = (await running(fleet, agent, ada.headers, gpus=1))["id"]
    for _ in range(10):
        restarted, stopped = await asyncio.gather(
            fleet.act(ada.headers, key, "restart"), fleet.act(ada.headers, key, "stop")
        )
        assert restarted.status_code in (200, 409)
        assert stopped.status_code == 200
        assert (await fleet.get(ada.headers, key))["status"] == "stopping", "the stop is never lost"
        async with app.state.database.sessions() as db:
            await assert_invariants(db)
        await agent.obey()
        assert (await fleet.get(ada.headers, key))["status"] == "stopped"
        assert (await fleet.act(ada.headers, key, "start")).status_code == 200
        await agent.obey()
