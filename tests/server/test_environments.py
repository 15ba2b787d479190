"""An environment's life through the HTTP app, with hollow agents."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.testing import Actors


async def test_environment_full_life_starts_stops_and_frees_its_gpu(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    made = await fleet.create(ada.headers, gpus=1, env={"MODE": "x"})
    assert made.status_code == 201, made.text
    body = made.json()
    assert (body["status"], body["reason"], body["host_name"]) == ("starting", "placed", "h1")
    assert len(body["allocated_gpus"]) == 1
    assert body["simulated"]
    workload = (await agent.desired())[body["id"]]
    assert workload["desired"] == "running"
    assert workload["gpu_uuids"] == [body["allocated_gpus"][0]["uuid"]]
    assert workload["secret_env"]["REMOTEGPU_TOKEN"].startswith("rgw_")
    assert workload["secret_env"]["REMOTEGPU_URL"] == "http://remotegpu.test"
    assert workload["env"] == {"MODE": "x"}
    token = {"Authorization": f"Bearer {workload['secret_env']['REMOTEGPU_TOKEN']}"}

    await agent.observe(body["id"], "pulling", progress_percent=43)
    pulling = await fleet.get(ada.headers, body["id"])
    assert (pulling["status"], pulling["progress_percent"]) == ("starting", 43)
    assert "43 %" in pulling["message"]
    digest = "sha256:" + "a" * 64
    await agent.observe(body["id"], "running", address="http://192.0.2.1:40001", image_digest=digest)
    running = await fleet.get(ada.headers, body["id"])
    assert (running["status"], running["address"]) == ("running", "http://192.0.2.1:40001")
    assert running["started_at"] is not None
    image = await client.get("/v1/images/base", headers=ada.headers)
    assert image.json()["digest"] == digest

    await agent.heartbeat(
        workloads=[
            {
                "workload_id": body["id"],
                "cpu_percent": 150.0,
                "memory_used_bytes": 5,
                "gpu_memory_bytes": {workload["gpu_uuids"][0]: 7},
            }
        ]
    )
    usage = await client.get(f"/v1/environments/{body['id']}/usage", headers=token)
    assert usage.status_code == 200, usage.text
    assert usage.json()["gpus"][0]["workload_memory_bytes"] == 7
    assert usage.json()["gpus"][0]["now"]["utilization_percent"] == 50.0
    assert len(usage.json()["gpus"][0]["history"]) == 1

    stopped = await fleet.act(ada.headers, body["id"], "stop")
    assert stopped.json()["status"] == "stopping"
    assert await fleet.gpus_free() == 1
    assert (await agent.desired())[body["id"]]["desired"] == "absent"
    assert (await agent.desired())[body["id"]]["secret_env"] == {}
    await agent.obey()
    assert (await fleet.get(ada.headers, body["id"]))["status"] == "stopped"
    assert await fleet.gpus_free() == 2
    assert await agent.desired() == {}
    refused = await client.get(f"/v1/environments/{body['id']}/usage", headers=token)
    assert refused.status_code == 401

    again = await fleet.act(ada.headers, body["id"], "start", gpus=2)
    assert again.status_code == 200, again.text
    assert (again.json()["generation"], again.json()["gpus"]) == (2, 2)
    late = await agent.observe(body["id"], "absent", generation=1)
    assert (late.status_code, late.json()["error"]) == (409, "generation_stale")
    await agent.obey()
    deleted = await client.delete(f"/v1/environments/{body['id']}", headers=ada.headers)
    assert deleted.status_code == 204
    await agent.obey()
    assert (await fleet.get(ada.headers, body["id"]))["status"] == "deleted"
    assert await fleet.gpus_free() == 2


@pytest.mark.parametrize("verb", ["stop", "delete"])
@pytest.mark.parametrize(
    "state", ["pending", "starting", "running", "unreachable", "failed", "stopping", "stopped"]
)
async def test_environment_is_ended_in_every_state(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work, state: str, verb: str
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    if state == "pending":
        blocker = await fleet.create(ada.headers, "blocker", gpus=1)
        assert blocker.status_code == 201
    made = (await fleet.create(ada.headers, gpus=1)).json()
    key = made["id"]
    if state in ("running", "unreachable", "stopping", "stopped"):
        await agent.observe(key, "running", address="http://192.0.2.1:1")
    if state == "failed":
        await agent.observe(key, "exited", exit_code=3, log_tail="boom")
    if state in ("stopping", "stopped"):
        await fleet.act(ada.headers, key, "stop")
    if state == "stopped":
        await agent.obey()
    if state == "unreachable":
        await silence(app, work, agent.host_id)
    before = await fleet.get(ada.headers, key)
    assert before["status"] == state, before
    for _ in range(2):  # twice is the same as once
        if verb == "stop":
            assert (await fleet.act(ada.headers, key, "stop")).status_code == 200
        elif (await fleet.get(ada.headers, key))["status"] != "deleted":
            assert (await client.delete(f"/v1/environments/{key}", headers=ada.headers)).status_code == 204
    if state == "unreachable":
        await agent.heartbeat()
    await agent.obey()
    expected = "deleted" if verb == "delete" else "failed" if state == "failed" else "stopped"
    assert (await fleet.get(ada.headers, key))["status"] == expected
    async with app.state.database.sessions() as db:
        live = await db.execute(
            text("SELECT count(*) FROM placements WHERE environment_id = :key AND released_at IS NULL"),
            {"key": key},
        )
        assert live.scalar_one() == 0


async def silence(app: FastAPI, work: Work, host_id: str) -> None:
    """Let the host's last heartbeat be long ago, and judge it."""
    from remotegpu_server.hosts import loop as hosts_loop

    async with app.state.database.sessions() as db:
        await db.execute(
            text("UPDATE hosts SET last_heartbeat_at = now() - interval '10 minutes' WHERE id = :id"),
            {"id": host_id},
        )
        await db.commit()
    await hosts_loop.judge_silence(work)


async def test_environment_whose_container_ends_fails_with_its_last_lines(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.observe(key, "running", address="http://192.0.2.1:1")
    await agent.heartbeat(
        observed=[
            {
                "workload_id": key,
                "generation": 1,
                "observed": "exited",
                "exit_code": 137,
                "reason": "out_of_memory",
                "log_tail": "line 1\nKilled\n",
            }
        ]
    )
    failed = await fleet.get(ada.headers, key)
    assert (failed["status"], failed["reason"], failed["exit_code"]) == ("failed", "out_of_memory", 137)
    assert await fleet.gpus_free() == 0
    conflict = await fleet.act(ada.headers, key, "start")
    assert (conflict.status_code, conflict.json()["error"]) == (409, "state_conflict")
    await agent.obey()
    assert await fleet.gpus_free() == 1
    logs = await client.get(f"/v1/environments/{key}/logs?tail_lines=1", headers=ada.headers)
    assert logs.json() == {"text": "Killed\n", "truncated": True, "live": False}
    assert (await fleet.act(ada.headers, key, "start")).json()["status"] == "starting"


async def test_environment_that_vanished_frees_its_gpu_only_after_proof(fleet: Fleet, actors: Actors) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.observe(key, "running", address="http://192.0.2.1:1")
    await agent.observe(key, "absent")
    gone = await fleet.get(ada.headers, key)
    assert (gone["status"], gone["reason"]) == ("failed", "workload_vanished")
    assert await fleet.gpus_free() == 0
    await agent.obey()
    assert await fleet.gpus_free() == 1


async def test_environment_repeated_start_is_answered_as_it_is(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1")
    ada = await actors.user("ada")
    made = (await fleet.create(ada.headers, gpus=1)).json()
    again = await fleet.act(ada.headers, made["id"], "start", gpus=0)
    assert again.status_code == 200
    assert (again.json()["generation"], again.json()["gpus"]) == (1, 1)
    await fleet.act(ada.headers, made["id"], "stop")
    refused = await fleet.act(ada.headers, made["id"], "start")
    assert (refused.status_code, refused.json()["error"]) == (409, "state_conflict")


async def test_queue_starts_in_order_when_a_gpu_is_freed(fleet: Fleet, actors: Actors, work: Work) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, ben, eve = [await actors.user(name) for name in ("ada", "ben", "eve")]
    holder = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    big = (await fleet.create(ben.headers, gpus=2)).json()
    assert (big["status"], big["reason"], big["queue_position"]) == ("pending", "no_free_gpu", 1)
    assert "at most 1 on one host" in big["message"]
    small = (await fleet.create(eve.headers, gpus=1)).json()
    assert (small["status"], small["queue_position"]) == ("pending", 2), (
        "it would take what the head waits for"
    )
    none = (await fleet.create(eve.headers, "cpu", gpus=0)).json()
    assert none["status"] == "starting"
    refused = await fleet.create(ada.headers, "second", gpus=1, queue=False)
    assert (refused.status_code, refused.json()["error"]) == (503, "no_capacity")
    await turns.place_pending(work)
    assert (await fleet.get(ben.headers, big["id"]))["status"] == "pending"
    await fleet.act(ada.headers, holder, "stop")
    await agent.obey()
    await turns.place_pending(work)
    assert (await fleet.get(ben.headers, big["id"]))["status"] == "starting"
    waiting = await fleet.get(eve.headers, small["id"])
    assert (waiting["status"], waiting["queue_position"]) == ("pending", 1)


async def test_queue_waits_for_the_owners_quota(fleet: Fleet, actors: Actors, work: Work) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    first = (await fleet.create(ada.headers, "one", gpus=1)).json()["id"]
    second = (await fleet.create(ada.headers, "two", gpus=1)).json()["id"]
    await fleet.limit("user", "ada", gpus=0)
    await fleet.act(ada.headers, first, "stop")
    await agent.obey()
    await turns.place_pending(work)
    waiting = await fleet.get(ada.headers, second)
    assert (waiting["status"], waiting["reason"]) == ("pending", "quota")
    await fleet.limit("user", "ada", gpus=1)
    await turns.place_pending(work)
    assert (await fleet.get(ada.headers, second))["status"] == "starting"


async def test_environment_of_another_tenant_is_not_found(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1")
    ada = await actors.user("ada")
    mallory = await actors.user("mallory", customer="other", role="owner")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/logs"),
        ("GET", "/usage"),
        ("POST", ":stop"),
        ("POST", ":start"),
    ]:
        answer = await client.request(
            method,
            f"/v1/environments/{key}{path}",
            headers=mallory.headers,
            json={} if path == ":start" else None,
        )
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found"), path
    listed = await client.get("/v1/environments", headers=mallory.headers)
    assert listed.json()["items"] == []
    gpus = (await client.get("/v1/gpus", headers=mallory.headers)).json()["items"]
    assert [(one["free"], one["holder"], one["environment_id"]) for one in gpus] == [(False, None, None)]
    own = (await client.get("/v1/gpus", headers=ada.headers)).json()["items"]
    assert [(one["holder"], one["environment_id"]) for one in own] == [("ada", key)]


@pytest.mark.parametrize(
    "name",
    [
        "JUPYTERHUB_API_TOKEN",
        "REMOTEGPU_TOKEN",
        "NVIDIA_VISIBLE_DEVICES",
        "LD_PRELOAD",
        "PATH",
        "CUDA_VISIBLE_DEVICES",
        "PYTHONSTARTUP",
    ],
)
async def test_environment_with_a_platform_variable_is_refused(
    fleet: Fleet, actors: Actors, name: str
) -> None:
    ada = await actors.user("ada")
    answer = await fleet.create(ada.headers, env={name: "x"})
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
    assert name in answer.json()["detail"]


async def test_secret_env_is_the_hubs_alone_and_reaches_only_the_agent(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    refused = await fleet.create(ada.headers, secret_env={"JUPYTERHUB_API_TOKEN": "canary"})
    assert refused.status_code == 403
    hub = {"Authorization": f"Bearer {await actors.hub()}", "X-RemoteGPU-On-Behalf-Of": "ada"}
    made = await fleet.create(hub, secret_env={"JUPYTERHUB_API_TOKEN": "canary"})
    assert made.status_code == 201, made.text
    assert "canary" not in made.text
    workload = (await agent.desired())[made.json()["id"]]
    assert workload["secret_env"]["JUPYTERHUB_API_TOKEN"] == "canary"
    async with app.state.database.sessions() as db:
        stored = (await db.execute(text("SELECT secret_env FROM environments"))).scalar_one()
        assert b"canary" not in bytes(stored)


async def test_environment_unknown_image_is_refused(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    ada = await actors.user("ada")
    answer = await fleet.create(ada.headers, image="nobody/knows")
    assert (answer.status_code, answer.json()["error"]) == (422, "image_not_allowed")
    await client.patch("/v1/images/base", headers=fleet.admin, json={"status": "withdrawn"})
    answer = await fleet.create(ada.headers)
    assert answer.json()["error"] == "image_not_allowed"


async def test_environment_that_no_host_can_hold_is_refused_with_what_is_there(
    fleet: Fleet, actors: Actors
) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    three = await fleet.create(ada.headers, gpus=3)
    assert (three.status_code, three.json()["error"]) == (422, "unsatisfiable")
    assert "the largest host has 2" in three.json()["detail"]
    unknown = await fleet.create(ada.headers, gpus=1, gpu_models=["H900"])
    assert unknown.json()["error"] == "unsatisfiable"
    assert "A100-80GB" in unknown.json()["detail"]


async def test_illegal_transition_is_refused_by_the_database(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers)).json()["id"]
    async with app.state.database.sessions() as db:
        with pytest.raises(DBAPIError, match="starting"):
            await db.execute(text("UPDATE environments SET status = 'stopped' WHERE id = :key"), {"key": key})


async def test_admin_release_frees_the_gpu_and_still_removes_the_container(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.observe(key, "running", address="http://192.0.2.1:1")
    assert (await fleet.act(ada.headers, key, "release")).status_code == 403
    released = await fleet.act(fleet.admin, key, "release")
    assert (released.json()["status"], released.json()["reason"]) == ("failed", "forced")
    assert await fleet.gpus_free() == 1
    assert (await agent.desired())[key]["desired"] == "absent"
    await agent.obey()
    assert await agent.desired() == {}
    events = await client.get(f"/v1/events?subject_type=environment&subject_id={key}", headers=fleet.admin)
    assert "environment.released" in {one["kind"] for one in events.json()["items"]}


async def test_logs_are_fetched_from_the_host(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    import asyncio

    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers)).json()["id"]
    await agent.observe(key, "running", address="http://192.0.2.1:1")
    await agent.desired()
    reader = asyncio.create_task(client.get(f"/v1/environments/{key}/logs", headers=ada.headers))
    asked = await agent.poll(since=agent.revision, wait_s=10)
    (request,) = asked.json()["log_requests"]
    assert request["workload_id"] == key
    answer = await client.put(
        f"/v1/agent/log-requests/{request['id']}",
        headers=agent.headers,
        json={"epoch": agent.epoch, "text": "hello\n", "truncated": False},
    )
    assert answer.status_code == 204, answer.text
    assert (await reader).json() == {"text": "hello\n", "truncated": False, "live": True}


async def test_explain_says_what_then_happens(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await fleet.limit("user", "ada", gpus=2, environments=2)
    outcomes = []
    for name in ("one", "two", "three"):
        spec = {"image": "base", "gpus": 1}
        told = (await client.post("/v1/placements:explain", headers=ada.headers, json=spec)).json()
        made = await fleet.create(ada.headers, name, gpus=1)
        outcomes.append(told["outcome"])
        if told["outcome"] == "refused":
            assert made.json()["error"] == told["error"]
        elif told["outcome"] == "waits":
            assert (made.json()["reason"], made.json()["queue_position"]) == (
                told["reason"],
                told["queue_position"],
            )
        else:
            assert made.json()["host_name"] == told["host_name"]
    assert outcomes == ["starts_now", "waits", "refused"]


@pytest.mark.parametrize("account", ["users/ada", "customers/physics"])
async def test_suspended_account_keeps_what_runs_and_its_queued_start_is_withdrawn(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, work: Work, account: str
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada", customer="physics")
    admin = await actors.admin("second")
    running = (await fleet.create(ada.headers, "runs", gpus=1)).json()["id"]
    await agent.observe(running, "running", address="http://192.0.2.1:1")
    waiting = (await fleet.create(ada.headers, "waits", gpus=1)).json()["id"]
    assert (await client.post(f"/v1/{account}:suspend", headers=admin.headers)).status_code == 200
    await turns.place_pending(work)
    assert (await fleet.get(admin.headers, running))["status"] == "running"
    withdrawn = await fleet.get(admin.headers, waiting)
    assert (withdrawn["status"], withdrawn["reason"]) == ("stopped", "suspended")


async def test_hub_may_stop_what_a_suspended_user_left_running_and_start_nothing(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.obey()
    await client.post("/v1/users/ada:suspend", headers=fleet.admin)
    hub = {"Authorization": f"Bearer {await actors.hub()}", "X-RemoteGPU-On-Behalf-Of": "ada"}

    listed = await client.get("/v1/environments?owner=ada", headers=hub)
    assert [one["status"] for one in listed.json()["items"]] == ["running"]
    refused = await fleet.create(hub, name="more")
    assert (refused.status_code, refused.json()["error"]) == (403, "account_suspended")
    assert (await fleet.act(hub, key, "stop")).status_code == 200
    await agent.obey()
    assert (await fleet.act(hub, key, "start")).json()["error"] == "account_suspended"
    assert (await client.get(f"/v1/environments/{key}", headers=hub)).json()["status"] == "stopped"
