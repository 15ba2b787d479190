"""What admins want of hosts: verbs and their preconditions, drains, batches, filters, addresses."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.hosts import Gpu
from remotegpu_server.authz import Actor
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import tables
from remotegpu_server.db.transitions import HOST_OPERATIONAL
from remotegpu_server.gpus import service as gpus
from remotegpu_server.hosts import lifecycle
from remotegpu_server.hosts import loop as hosts_loop
from remotegpu_server.hosts.service import entries
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors


async def _do(fleet: Fleet, host: str, verb: str, **body: Any) -> httpx.Response:
    return await fleet.client.post(f"/v1/hosts/{host}:{verb}", headers=fleet.admin, json=body)


async def _sql(app: FastAPI, statement: str, **values: Any) -> Any:
    async with app.state.database.sessions() as db:
        answer = await db.execute(text(statement), values)
        rows = answer.all() if answer.returns_rows else []
        await db.commit()
        return rows


def test_every_operation_is_a_legal_move() -> None:
    for operation in [*lifecycle.OPERATIONS.values(), lifecycle.REJOIN]:
        for source in operation.sources - {operation.to}:
            assert operation.to in HOST_OPERATIONAL[source]


async def test_database_refuses_moves_that_the_table_lacks(fleet: Fleet, app: FastAPI) -> None:
    await fleet.new_host("h1")
    refused = [
        (source, target)
        for source, targets in HOST_OPERATIONAL.items()
        for target in set(HOST_OPERATIONAL) - targets - {source}
    ]
    for source, target in refused:
        async with app.state.database.sessions() as db:
            await db.execute(text("SET LOCAL session_replication_role = replica"))
            await db.execute(text("UPDATE hosts SET operational = :s"), {"s": source})
            await db.execute(text("SET LOCAL session_replication_role = origin"))
            with pytest.raises(IntegrityError):
                await db.execute(text("UPDATE hosts SET operational = :t"), {"t": target})


async def test_host_with_environments_enters_neither_maintenance_nor_retirement(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("h1")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    for verb in ("maintenance", "retire"):
        refused = await _do(fleet, "h1", verb)
        assert (refused.status_code, refused.json()["error"]) == (409, "in_use")
    with pytest.raises(IntegrityError, match="still holds"):
        await _sql(app, "UPDATE hosts SET operational = 'maintenance'")
    await fleet.act(ada.headers, key, "stop")
    await agent.obey()
    assert (await _do(fleet, "h1", "maintenance", reason="new fans")).json()["operational"] == "maintenance"
    assert (await _do(fleet, "h1", "uncordon")).status_code == 409
    back = (await _do(fleet, "h1", "activate")).json()
    assert (back["operational"], back["ready"], back["gpus_free"]) == ("available", True, 1)


async def test_retired_host_is_out_until_an_agent_joins_again(fleet: Fleet) -> None:
    agent = await fleet.host("h1")
    assert (await _do(fleet, "h1", "retire")).json()["operational"] == "retired"
    assert (await agent.heartbeat()).status_code == 401
    assert (await _do(fleet, "h1", "cordon")).status_code == 409
    assert (await _do(fleet, "h1", "activate")).json()["operational"] == "pending"
    joined = await fleet.enroll(await fleet.enrollment("h1"))
    agent.credential = joined.json()["credential"]
    await agent.register()
    host = (await fleet.client.get("/v1/hosts/h1", headers=fleet.admin)).json()
    assert (host["operational"], host["ready"]) == ("available", True)


async def test_drain_tells_users_stops_at_the_deadline_and_says_when_it_is_over(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    await actors.user("eve")
    keys = [(await fleet.create(who.headers, gpus=1)).json()["id"] for who in (ada, bob)]
    await agent.obey()
    drained = (await _do(fleet, "h1", "drain", deadline_s=3600, message="A new rack.")).json()
    assert (drained["operational"], drained["ready"]) == ("draining", False)
    assert drained["drain_deadline"] is not None
    told = await _sql(app, "SELECT user_id, message FROM notifications WHERE kind = 'host.draining'")
    assert {row.user_id for row in told} == {ada.id, bob.id}
    assert all("60 minutes" in row.message and "A new rack." in row.message for row in told)
    await hosts_loop.follow_drains(work)
    assert (await fleet.get(ada.headers, keys[0]))["status"] == "running"
    await _sql(app, "UPDATE hosts SET drain_deadline = now() - interval '1 s'")
    await hosts_loop.follow_drains(work)
    await hosts_loop.follow_drains(work)
    stopping = await fleet.get(ada.headers, keys[0])
    assert (stopping["status"], stopping["reason"]) == ("stopping", "host_drained")
    assert (await fleet.client.get("/v1/hosts/h1", headers=fleet.admin)).json()["drained_at"] is None
    await agent.obey()
    for _ in range(2):
        await hosts_loop.follow_drains(work)
    assert len(await _sql(app, "SELECT 1 FROM events WHERE kind = 'host.drained'")) == 1
    assert (await _do(fleet, "h1", "maintenance")).status_code == 200


async def test_batch_does_what_it_can_and_says_what_it_could_not(fleet: Fleet) -> None:
    for name in ("a", "b", "c"):
        await fleet.new_host(name)
    answer = await fleet.client.post(
        "/v1/hosts:batch", headers=fleet.admin, json={"verb": "cordon", "hosts": ["a", "x", "b", "y", "c"]}
    )
    assert answer.json() == {
        "succeeded": ["a", "b", "c"],
        "failed": {"x": "There is no such host.", "y": "There is no such host."},
    }
    await _do(fleet, "b", "retire")
    mixed = await fleet.client.post(
        "/v1/hosts:batch", headers=fleet.admin, json={"verb": "maintenance", "hosts": ["a", "b"]}
    )
    assert (mixed.json()["succeeded"], list(mixed.json()["failed"])) == (["a"], ["b"])


async def test_lists_are_filtered_by_each_state_label_and_model(fleet: Fleet) -> None:
    await fleet.host("h1", model="A100-80GB")
    await fleet.host("h2", model="H100-80GB")
    await fleet.new_host("h3")
    await fleet.client.patch("/v1/hosts/h2", headers=fleet.admin, json={"labels": {"region": "eu"}})
    await _do(fleet, "h1", "cordon")

    async def names(query: str) -> list[str]:
        answer = await fleet.client.get(f"/v1/hosts?{query}", headers=fleet.admin)
        assert answer.status_code == 200, answer.text
        return [one["name"] for one in answer.json()["items"]]

    assert await names("operational=cordoned") == ["h1"]
    assert await names("operational=pending") == ["h3"]
    assert await names("connection=never") == ["h3"]
    assert await names("label=region%3Deu") == ["h2"]
    assert await names("label=region") == ["h2"]
    assert await names("label=region%3Dus") == []
    assert await names("gpu_model=a100") == ["h1"]
    assert await names("gpu_model=100") == ["h1", "h2"]
    assert await names("gpu_model=%25") == []


async def test_address_is_one_hosts_even_for_calls_at_the_same_time(fleet: Fleet) -> None:
    async def make(number: int) -> int:
        answer = await fleet.client.post(
            "/v1/hosts",
            headers=fleet.admin,
            json={"name": f"n{number}", "ip_address": "198.51.100.7", "hostname": f"n{number}.example.org"},
        )
        return answer.status_code

    assert sorted(await asyncio.gather(*(make(number) for number in range(6)))) == [201] + [409] * 5
    await fleet.new_host("other")
    taken = await fleet.client.patch(
        "/v1/hosts/other", headers=fleet.admin, json={"ip_address": "198.51.100.7"}
    )
    assert (taken.status_code, taken.json()["data"]["field"]) == (409, "ip_address")
    wrong = await fleet.client.patch("/v1/hosts/other", headers=fleet.admin, json={"ip_address": "999.1.1.1"})
    assert wrong.status_code == 422


async def test_host_is_lost_after_minutes_and_its_environments_stay_unreachable(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1")
    for name in ("h2", "h3", "h4"):
        await fleet.host(name, gpus=0)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.obey()
    seen = []
    for seconds in (40, 120, 400):
        await _sql(
            app,
            "UPDATE hosts SET last_heartbeat_at = now() - make_interval(secs => :s) WHERE id = :id",
            s=seconds,
            id=agent.host_id,
        )
        await hosts_loop.judge_silence(work)
        host = (await fleet.client.get("/v1/hosts/h1", headers=fleet.admin)).json()
        seen.append((host["connection"], (await fleet.get(ada.headers, key))["status"]))
    assert seen == [("suspect", "running"), ("unreachable", "unreachable"), ("lost", "unreachable")]
    assert await _sql(app, "SELECT 1 FROM placements WHERE released_at IS NULL")
    await agent.heartbeat()
    host = (await fleet.client.get("/v1/hosts/h1", headers=fleet.admin)).json()
    assert (host["connection"], host["ready"]) == ("online", True)
    assert (await fleet.get(ada.headers, key))["status"] == "running"


async def test_readiness_in_sql_is_the_readiness_in_words(fleet: Fleet, app: FastAPI) -> None:
    await fleet.host("h1", gpus=1)
    row = tables.Host
    ends = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    lent = {"host": "h1", "customer": "default", "ends_at": ends}
    assert (await fleet.client.post("/v1/dedications", headers=fleet.admin, json=lent)).status_code == 201
    for column, values in {
        "operational": sorted(HOST_OPERATIONAL),
        "connection": ["never", "online", "suspect", "unreachable", "lost"],
        "health": ["unknown", "healthy", "degraded", "faulty"],
        "runtime_healthy": [True, False],
        "dedications.status": ["scheduled", "active", "grace", "cleaning", "ended", "cancelled"],
    }.items():
        table, _, name = column.rpartition(".")
        for value in values:
            async with app.state.database.sessions() as db:
                await db.execute(text("SET LOCAL session_replication_role = replica"))
                await db.execute(text(f"UPDATE {table or 'hosts'} SET {name} = :value"), {"value": value})  # noqa: S608
                sql = await db.scalar(select(capacity.takes_work()).select_from(row))
                (inventory,) = await capacity.inventory(db)
                (host,) = await entries.to_wire(db, (await db.scalars(select(row))).all())
                assert sql == inventory.ready == host.ready, (column, value)
                assert host.not_ready_reason == inventory.not_ready_reason, (column, value)
                (shown,) = await _gpus(db, free=None)
                assert shown.free == bool(await _gpus(db, free=True)) == sql, (column, value)


async def _gpus(db: AsyncSession, *, free: bool | None) -> list[Gpu]:
    root = Actor(kind="user", token_id="", scopes=frozenset({"all"}), name="root", user_id="", role="admin")
    page = await gpus.list_gpus(db, actor=root, host=None, model=None, free=free, limit=2, cursor=None)
    return page.items
