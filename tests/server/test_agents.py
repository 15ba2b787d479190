"""The agent protocol: who may speak, what a report changes, and what silence means."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet, gpu
from sqlalchemy import text

from remotegpu_server.hosts import loop as hosts_loop
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors


async def silence(app: FastAPI, *host_ids: str, seconds: int = 600) -> None:
    """Let the last heartbeats be that long ago."""
    async with app.state.database.sessions() as db:
        await db.execute(
            text(
                "UPDATE hosts SET last_heartbeat_at = now() - make_interval(secs => :s) WHERE id = ANY(:ids)"
            ),
            {"ids": list(host_ids), "s": seconds},
        )
        await db.commit()


async def test_enrolment_token_used_expired_or_no_token_is_refused(
    fleet: Fleet, app: FastAPI, actors: Actors
) -> None:
    token = await fleet.new_host("h1")
    assert (await fleet.enroll(token)).status_code == 201
    used = await fleet.enroll(token)
    assert (used.status_code, used.json()["error"]) == (410, "enrollment_token_used")
    late = await fleet.new_host("h2")
    async with app.state.database.sessions() as db:
        await db.execute(
            text(
                "UPDATE tokens SET expires_at = now() - interval '1 s' WHERE used_at IS NULL"
                " AND kind = 'enrollment'"
            )
        )
        await db.commit()
    assert (await fleet.enroll(late)).status_code == 410
    ada = await actors.user("ada")
    assert (await fleet.enroll(ada.secret)).status_code == 403
    assert (await fleet.enroll("rge_abcdefghjkmn_" + "x" * 43)).status_code == 401


async def test_host_enrolled_again_loses_its_old_credential(fleet: Fleet, client: httpx.AsyncClient) -> None:
    agent = await fleet.host("h1")
    again = await fleet.enroll(await fleet.enrollment("h1"))
    assert again.status_code == 201
    assert (await agent.heartbeat()).status_code == 401
    events = await client.get(f"/v1/events?subject_type=host&subject_id={agent.host_id}", headers=fleet.admin)
    assert "host.reenrolled" in {one["kind"] for one in events.json()["items"]}


async def test_older_session_of_a_host_is_refused_everywhere(fleet: Fleet, actors: Actors) -> None:
    first = await fleet.host("h1")
    second = replace(first)
    await second.register()
    assert second.epoch == first.epoch + 1
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    for answer in (await first.heartbeat(), await first.poll(), await first.observe(key, "absent")):
        assert (answer.status_code, answer.json()["error"]) == (409, "epoch_stale")
    assert (await second.heartbeat()).status_code == 200


async def test_report_of_a_foreign_host_changes_nothing(fleet: Fleet, actors: Actors) -> None:
    owner, other = await fleet.host("h1"), await fleet.host("h2", gpus=0)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    for seen in ("absent", "running", "failed"):
        answer = await other.observe(key, seen)
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    await other.heartbeat(observed=[{"workload_id": key, "generation": 1, "observed": "absent"}])
    assert (await fleet.get(ada.headers, key))["status"] == "starting"
    assert (await owner.observe(key, "running", address="http://192.0.2.1:1")).status_code == 204


async def test_reports_twice_and_out_of_order_end_in_the_same_state(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    for _ in range(2):
        await agent.observe(key, "running", address="http://192.0.2.1:1")
    events = await client.get(f"/v1/events?subject_type=environment&subject_id={key}", headers=ada.headers)
    assert sum(one["data"].get("to") == "running" for one in events.json()["items"]) == 1
    await fleet.act(ada.headers, key, "stop")
    for seen in ("absent", "absent"):
        assert (await agent.observe(key, seen)).status_code == 204
    assert (await agent.observe(key, "stopping")).status_code == 409
    assert (await fleet.get(ada.headers, key))["status"] == "stopped"


async def test_reboot_is_proof_of_absence_unless_the_agent_still_reports_it(
    fleet: Fleet, actors: Actors
) -> None:
    agent = await fleet.host("h1", gpus=3)
    ada = await actors.user("ada")
    gone, kept, stopping = [
        (await fleet.create(ada.headers, name, gpus=1)).json()["id"] for name in ("gone", "kept", "stopping")
    ]
    await fleet.act(ada.headers, stopping, "stop")
    agent.boot_id = "boot-2"
    await agent.register(
        [{"workload_id": kept, "generation": 1, "observed": "running", "address": "http://192.0.2.1:1"}]
    )
    failed = await fleet.get(ada.headers, gone)
    assert (failed["status"], failed["reason"]) == ("failed", "host_rebooted")
    assert (await fleet.get(ada.headers, kept))["status"] == "running"
    assert (await fleet.get(ada.headers, stopping))["status"] == "stopped"
    assert await fleet.gpus_free() == 2


async def test_agent_restart_without_reboot_keeps_what_it_does_not_report(
    fleet: Fleet, actors: Actors
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.observe(key, "running", address="http://192.0.2.1:1")
    await agent.register([])
    assert (await fleet.get(ada.headers, key))["status"] == "running"
    assert await fleet.gpus_free() == 0


async def test_silent_host_is_suspect_then_unreachable_and_comes_back(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.observe(key, "running", address="http://192.0.2.1:1")
    await silence(app, agent.host_id, seconds=35)
    await hosts_loop.judge_silence(work)
    host = (await client.get("/v1/hosts/h1", headers=fleet.admin)).json()
    assert (host["connection"], host["ready"], host["gpus_free"]) == ("suspect", False, 0)
    assert (await fleet.get(ada.headers, key))["status"] == "running"
    waits = (await fleet.create(ada.headers, "two", gpus=1)).json()
    assert (waits["status"], waits["reason"]) == ("pending", "no_ready_host")
    await silence(app, agent.host_id)
    await hosts_loop.judge_silence(work)
    lost = await fleet.get(ada.headers, key)
    assert (lost["status"], lost["reason"]) == ("unreachable", "host_silent")
    await agent.heartbeat()
    back = await fleet.get(ada.headers, key)
    assert (back["status"], back["reason"], back["address"]) == ("running", "host_back", "http://192.0.2.1:1")
    assert (await client.get("/v1/hosts/h1", headers=fleet.admin)).json()["ready"]


async def test_heartbeat_that_was_overtaken_says_nothing_and_brings_no_host_back(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.observe(key, "running", address="http://192.0.2.1:1")
    await agent.heartbeat(sequence=5, runtime_detail="new")
    await silence(app, agent.host_id)
    await hosts_loop.judge_silence(work)
    late = await agent.heartbeat(
        sequence=4,
        runtime_healthy=False,
        runtime_detail="old",
        quarantined=["old"],
        host={"disk_used_bytes": 99, "disk_total_bytes": 100},
    )
    assert late.status_code == 200, late.text
    async with app.state.database.sessions() as db:
        row = (
            await db.execute(
                text(
                    "SELECT connection, runtime_healthy, runtime_detail, quarantined, disk_full,"
                    " last_heartbeat_at > now() - interval '1 minute' AS heard FROM hosts"
                )
            )
        ).one()
    assert tuple(row) == ("lost", True, "new", [], False, True)
    await agent.heartbeat(sequence=6)
    back = await fleet.get(ada.headers, key)
    assert (back["status"], back["reason"]) == ("running", "host_back")


async def test_nobody_is_judged_in_the_grace_after_a_start(fleet: Fleet, app: FastAPI, work: Work) -> None:
    import time

    agent = await fleet.host("h1")
    await silence(app, agent.host_id)
    await hosts_loop.judge_silence(replace(work, leading_since=time.monotonic()))
    async with app.state.database.sessions() as db:
        assert (await db.execute(text("SELECT connection FROM hosts"))).scalar_one() == "online"


async def test_mass_silence_decides_nothing_and_says_so_once(fleet: Fleet, app: FastAPI, work: Work) -> None:
    agents = [await fleet.host(f"h{number}") for number in range(4)]
    await silence(app, *(agent.host_id for agent in agents[:3]))
    await hosts_loop.judge_silence(work)
    await hosts_loop.judge_silence(work)
    async with app.state.database.sessions() as db:
        states = (await db.execute(text("SELECT DISTINCT connection FROM hosts"))).scalars().all()
        said = await db.execute(text("SELECT count(*) FROM events WHERE kind = 'host.mass_silence'"))
        assert (list(states), said.scalar_one()) == (["online"], 1)


async def test_gpu_that_is_gone_is_missing_and_comes_back(fleet: Fleet, client: httpx.AsyncClient) -> None:
    agent = await fleet.host("h1", gpus=2)
    both = agent.gpus
    agent.gpus = both[:1]
    await agent.register()
    listed = (await client.get("/v1/gpus?host=h1", headers=fleet.admin)).json()["items"]
    assert sorted((one["health"], one["free"]) for one in listed) == [("healthy", True), ("missing", False)]
    agent.gpus = both
    await agent.register()
    assert await fleet.gpus_free() == 1, "it was gone once: a check or an admin puts it back"


async def test_gpu_of_another_host_is_refused(fleet: Fleet) -> None:
    await fleet.host("h1")
    other = await fleet.host("h2", gpus=0)
    other.gpus = [gpu("GPU-h1-0")]
    answer = await other.register()
    assert (answer.status_code, answer.json()["error"]) == (409, "state_conflict")
    assert "GPU-h1-0" in answer.json()["detail"]


async def test_unhealthy_gpu_takes_no_new_work(fleet: Fleet, actors: Actors) -> None:
    agent = await fleet.host("h1", gpus=1)
    await agent.heartbeat(gpus=[{"uuid": "GPU-h1-0", "metrics": {}, "unhealthy_reason": "XID 79"}])
    assert await fleet.gpus_free() == 0
    ada = await actors.user("ada")
    assert (await fleet.create(ada.headers, gpus=1)).json()["reason"] == "no_free_gpu"
    await agent.heartbeat()
    assert await fleet.gpus_free() == 0


async def test_long_poll_wakes_on_change_and_ends_with_the_credential(fleet: Fleet, actors: Actors) -> None:
    agent = await fleet.host("h1")
    await agent.desired()
    waiting = asyncio.create_task(agent.poll(since=agent.revision, wait_s=30))
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    answer = await asyncio.wait_for(waiting, 5)
    assert [one["id"] for one in answer.json()["workloads"]] == [key]
    await agent.desired()
    waiting = asyncio.create_task(agent.poll(since=agent.revision, wait_s=30))
    await asyncio.sleep(0)
    await fleet.enroll(await fleet.enrollment("h1"))
    assert (await asyncio.wait_for(waiting, 10)).status_code == 401


async def test_agent_credential_opens_nothing_else(fleet: Fleet, client: httpx.AsyncClient) -> None:
    agent = await fleet.host("h1")
    for path in ("/v1/hosts", "/v1/environments", "/v1/gpus", "/v1/capacity", "/v1/images"):
        assert (await client.get(path, headers=agent.headers)).status_code == 403, path
