"""Sick GPUs leave placement by themselves, their holders are told, and a check or an admin brings them back.

With them: credentials of agents, and two agents of one host.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.testing import Actors


async def _beat(agent: HollowAgent, reason: str | None = None, **metrics: Any) -> None:
    """The first GPU says this, the others are well."""
    gpus = [{"uuid": one["uuid"], "metrics": {}, "unhealthy_reason": None} for one in agent.gpus]
    gpus[0] |= {"metrics": metrics, "unhealthy_reason": reason}
    assert (await agent.heartbeat(gpus=gpus)).status_code == 200


async def _gpus(fleet: Fleet) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await fleet.client.get("/v1/gpus", headers=fleet.admin)).json()["items"]
    return found


async def _host(fleet: Fleet, name: str = "h1") -> dict[str, Any]:
    found: dict[str, Any] = (await fleet.client.get(f"/v1/hosts/{name}", headers=fleet.admin)).json()
    return found


async def _rows(app: FastAPI, statement: str) -> Any:
    async with app.state.database.sessions() as db:
        return (await db.execute(text(statement))).all()


async def test_sick_gpu_leaves_placement_its_holder_is_told_and_it_never_returns_by_itself(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.obey()
    for _ in range(2):
        await _beat(agent, "fatal XID 79: the device needs a reset", xid=79)
    sick = (await _gpus(fleet))[0]
    assert (sick["health"], sick["free"], sick["environment_id"]) == ("unhealthy", False, key)
    told = await _rows(app, "SELECT user_id FROM notifications WHERE kind = 'gpu.health'")
    assert ada.id in {row.user_id for row in told}
    assert bob.id not in {row.user_id for row in told}
    assert len(await _rows(app, "SELECT 1 FROM events WHERE kind = 'gpu.health'")) == 1
    assert (await _host(fleet))["health"] == "degraded"
    assert (await fleet.get(ada.headers, key))["status"] == "running"
    await _beat(agent)
    await agent.register()
    assert (await _gpus(fleet))[0]["health"] == "unhealthy"
    waits = (await fleet.create(bob.headers, "two", gpus=2)).json()
    assert waits.get("status", "refused") in ("pending", "refused")


async def test_check_brings_a_gpu_back_only_when_it_passes(fleet: Fleet) -> None:
    agent = await fleet.host("h1", gpus=2)
    other = await fleet.host("h2", gpus=0)
    await _beat(agent, "1 uncorrected ECC errors since the driver was loaded")
    gpu = (await _gpus(fleet))[0]["id"]
    for passed, health in ((False, "unhealthy"), (True, "healthy")):
        asked = await fleet.client.post(f"/v1/gpus/{gpu}:check", headers=fleet.admin)
        again = await fleet.client.post(f"/v1/gpus/{gpu}:check", headers=fleet.admin)
        assert asked.json()["id"] == again.json()["id"]
        (check,) = (await agent.poll()).json()["gpu_checks"]
        path = f"/v1/agent/gpu-checks/{check['id']}"
        body = {"epoch": agent.epoch, "passed": passed, "detail": "" if passed else "no answer"}
        foreign = await fleet.client.put(path, headers=other.headers, json=body | {"epoch": other.epoch})
        assert foreign.status_code == 403
        for _ in range(2):
            assert (await fleet.client.put(path, headers=agent.headers, json=body)).status_code == 204
        assert (await _gpus(fleet))[0]["health"] == health
    assert (await agent.poll()).json()["gpu_checks"] == []
    assert (await _host(fleet))["health"] == "healthy"


async def test_admin_accepts_one_reason_and_another_takes_the_gpu_out_again(fleet: Fleet) -> None:
    agent = await fleet.host("h1")
    await _beat(agent, "1 uncorrected ECC errors")
    gpu = (await _gpus(fleet))[0]["id"]
    path = f"/v1/gpus/{gpu}:restore"
    assert (await fleet.client.post(path, headers=fleet.admin, json={})).status_code == 422
    restored = await fleet.client.post(path, headers=fleet.admin, json={"reason": "seen, harmless"})
    assert (restored.json()["health"], restored.json()["free"]) == ("healthy", True)
    await _beat(agent, "1 uncorrected ECC errors")
    assert (await _gpus(fleet))[0]["health"] == "healthy"
    await _beat(agent, "2 uncorrected ECC errors")
    assert (await _gpus(fleet))[0]["health"] == "unhealthy"


async def test_hot_gpu_and_vanished_gpu_are_taken_out(fleet: Fleet) -> None:
    agent = await fleet.host("h1", gpus=2)
    await _beat(agent, temperature_c=94.0)
    assert (await _gpus(fleet))[0]["health"] == "healthy"
    await _beat(agent, temperature_c=96.0)
    assert (await _gpus(fleet))[0]["health_reason"] == "hotter than 95 °C"
    everything = agent.gpus
    agent.gpus = everything[:1]
    await agent.register()
    assert [one["health"] for one in await _gpus(fleet)] == ["unhealthy", "missing"]
    gone = (await _gpus(fleet))[1]["id"]
    refused = await fleet.client.post(
        f"/v1/gpus/{gone}:restore", headers=fleet.admin, json={"reason": "please"}
    )
    assert refused.status_code == 409
    agent.gpus = everything
    await agent.register()
    assert [one["health"] for one in await _gpus(fleet)] == ["unhealthy", "unhealthy"]


async def test_full_disk_and_broken_runtime_show_in_the_health_of_the_host(fleet: Fleet) -> None:
    agent = await fleet.host("h1")
    assert (await _host(fleet))["health"] == "healthy"
    await agent.heartbeat(host={"disk_used_bytes": 97, "disk_total_bytes": 100})
    full = await _host(fleet)
    assert (full["health"], full["ready"]) == ("degraded", True)
    await agent.heartbeat(host={"disk_used_bytes": 10, "disk_total_bytes": 100})
    assert (await _host(fleet))["health"] == "healthy"
    await agent.heartbeat(runtime_healthy=False)
    broken = await _host(fleet)
    assert (broken["health"], broken["ready"]) == ("faulty", False)


async def test_credential_is_renewed_with_an_overlap_and_revoked_at_once(
    fleet: Fleet, app: FastAPI, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1")
    answer = await client.post(
        "/v1/hosts/h1:rotate-credential", headers=fleet.admin, json={"overlap_s": 3600}
    )
    renewed = replace(agent, credential=answer.json()["secret"])
    assert (await agent.heartbeat()).status_code == (await renewed.heartbeat()).status_code == 200
    async with app.state.database.sessions() as db:
        await db.execute(
            text("UPDATE tokens SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL")
        )
        await db.commit()
    assert (await agent.heartbeat()).status_code == 401
    assert (await renewed.heartbeat()).status_code == 200
    await client.post("/v1/hosts/h1:revoke-credential", headers=fleet.admin)
    assert (await renewed.heartbeat()).status_code == 401
    assert answer.json()["secret"] not in str(await _rows(app, "SELECT * FROM events"))
    assert answer.json()["secret"] not in str(await _rows(app, "SELECT * FROM audit_records"))


async def test_agent_of_another_host_is_refused_about_a_workload_and_a_check(
    fleet: Fleet, actors: Actors
) -> None:
    agent, other = await fleet.host("h1"), await fleet.host("h2", gpus=0)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    for seen in ("absent", "running", "failed"):
        assert (await other.observe(key, seen)).status_code == 403
    assert key in await agent.desired()
    assert key not in await other.desired()


async def test_agents_that_take_turns_quarantine_their_host_until_it_enrols_again(
    fleet: Fleet, app: FastAPI
) -> None:
    agent = await fleet.host("h1")
    for _ in range(3):
        await agent.register()
    assert (await _host(fleet))["health"] == "healthy"
    await agent.register()
    quarantined = await _host(fleet)
    assert (quarantined["health"], quarantined["ready"]) == ("faulty", False)
    assert await _rows(app, "SELECT 1 FROM notifications WHERE kind = 'host.duplicate_agent'")
    before = agent.epoch
    agent.credential = (await fleet.enroll(await fleet.enrollment("h1"))).json()["credential"]
    await agent.register()
    assert agent.epoch > before + 1, "the enrolment itself ended the old session"
    assert (await _host(fleet))["ready"]
