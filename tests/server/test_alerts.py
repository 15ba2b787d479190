"""Alert rules: what fires, whom it is told to, how it ends, and what a bad rule cannot do."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent

from remotegpu_server.alerts import judging, loop
from remotegpu_server.alerts.signals import SIGNALS, Reading, View
from remotegpu_server.alerts.signals.hosts import metrics_missing
from remotegpu_server.db import samples
from remotegpu_server.db.transitions import ALERT_STATUS
from remotegpu_server.hosts import loop as hosts_loop
from remotegpu_server.loops import Loop, Work
from remotegpu_server.testing import Actors

SEEDED = importlib.import_module("remotegpu_migrations.versions.0019_alerts")


async def _sql(app: FastAPI, statement: str, **values: Any) -> list[Any]:
    async with app.state.database.sessions() as db:
        found = await db.execute(sa.text(statement), values)
        rows = [tuple(row) for row in found] if found.returns_rows else []
        await db.commit()
        return rows


async def _alerts(fleet: Fleet, **query: str) -> list[dict[str, Any]]:
    answer = await fleet.client.get("/v1/alerts", headers=fleet.admin, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def _told(fleet: Fleet) -> list[str]:
    """What the admin was told of alerts, oldest first."""
    answer = await fleet.client.get("/v1/notifications", headers=fleet.admin)
    kinds = [(one["kind"], one["message"]) for one in reversed(answer.json()["items"])]
    return [f"{kind} {message}" for kind, message in kinds if kind.startswith("alert.")]


async def _set(fleet: Fleet, key: str, value: float) -> None:
    answer = await fleet.client.patch(f"/v1/settings/{key}", headers=fleet.admin, json={"value": value})
    assert answer.status_code == 200, answer.text


async def _later(app: FastAPI, seconds: float) -> None:
    """The same as waiting, for live alerts."""
    span = f"interval '{seconds} seconds'"
    await _sql(
        app,
        f"UPDATE alerts SET since = since - {span}, true_at = true_at - {span},"  # noqa: S608
        f" resolved_at = resolved_at - {span}",
    )


async def _judge(work: Work, of: Loop = loop.LOOP) -> None:
    """One pass, of a leader that stays one however slow this machine is."""
    async with work.database.sessions() as db:
        assert await work.candidate.acquire(db)
        await db.commit()
    await of.run(work)


async def _beat(agent: HollowAgent, **metrics: float | None) -> None:
    answer = await agent.heartbeat(gpus=[{"uuid": one["uuid"], "metrics": metrics} for one in agent.gpus])
    assert answer.status_code == 200, answer.text


async def test_silent_host_is_one_alert_told_once_and_resolved_on_return(
    fleet: Fleet, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    await fleet.host("h2", gpus=0)
    await agent.heartbeat()
    await _set(fleet, "alerts.hold_s", 0)
    await _judge(work)
    assert await _alerts(fleet) == []
    await _sql(
        app,
        "UPDATE hosts SET last_heartbeat_at = now() - interval '301 seconds' WHERE id = :id",
        id=agent.host_id,
    )
    for _ in range(3):
        await _judge(work, hosts_loop.LIVENESS)
        await _judge(work)
    (alert,) = await _alerts(fleet)
    assert (alert["rule"], alert["object_name"], alert["status"]) == ("agent-offline", "h1", "firing")
    assert alert["value"] > 300
    assert "since 20" in alert["message"]
    assert SIGNALS["host_silent_s"].advice in alert["message"]
    await agent.heartbeat()
    for _ in range(2):
        await _judge(work)
    (alert,) = await _alerts(fleet)
    assert (alert["status"], alert["resolution"]) == ("resolved", "it is 0 s now")
    first, second = await _told(fleet)
    assert first.startswith("alert.triggered agent-offline: host h1")
    assert second.startswith("alert.resolved Resolved: agent-offline of h1")


async def test_value_fires_after_its_duration_holds_while_unknown_and_flaps_longer_each_time(
    fleet: Fleet, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    await _beat(agent, temperature_c=90.0)
    await _judge(work)
    assert [one["status"] for one in await _alerts(fleet)] == ["pending"]
    await _beat(agent, temperature_c=60.0)
    await _judge(work)
    assert await _alerts(fleet) == [], "nobody had heard of it"
    for flaps, hold_s in enumerate((60, 120, 240)):
        await _beat(agent, temperature_c=90.0)
        await _judge(work)
        await _later(app, 181)
        await _judge(work)
        (alert,) = await _alerts(fleet, status="firing")
        assert (alert["rule"], alert["value"], alert["flaps"]) == ("gpu-temperature-high", 90.0, flaps)
        await _beat(agent, utilization_percent=1.0)  # the sensor says nothing
        await _later(app, 10000)
        await _judge(work)
        assert len(await _alerts(fleet, status="firing")) == 1
        await _beat(agent, temperature_c=90.0)
        await _judge(work)
        await _beat(agent, temperature_c=60.0)
        await _sql(app, f"UPDATE alerts SET true_at = now() - interval '{hold_s - 5} seconds'")  # noqa: S608
        await _judge(work)
        assert len(await _alerts(fleet, status="firing")) == 1
        await _sql(app, f"UPDATE alerts SET true_at = now() - interval '{hold_s + 1} seconds'")  # noqa: S608
        await _judge(work)
        assert await _alerts(fleet, status="firing") == []
    assert len(await _told(fleet)) == 6


async def test_silence_keeps_quiet_until_its_end_and_acknowledging_is_once(
    fleet: Fleet, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    await _beat(agent, xid=31)
    quiet = {
        "object": "GPU 0 of h1 (simulated)",
        "until": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    }
    made = await fleet.client.post(
        "/v1/alert-silences", headers=fleet.admin, json=quiet | {"rule": "gpu-xid"}
    )
    assert made.status_code == 201, made.text
    await _judge(work)
    (alert,) = await _alerts(fleet)
    assert (alert["status"], alert["silenced"], await _told(fleet)) == ("firing", True, [])
    await fleet.client.delete(f"/v1/alert-silences/{made.json()['id']}", headers=fleet.admin)
    for _ in range(2):
        await _judge(work)
    assert [one[:23] for one in await _told(fleet)] == ["alert.triggered gpu-xid"]
    path = f"/v1/alerts/{alert['id']}:acknowledge"
    first = (await fleet.client.post(path, headers=fleet.admin)).json()
    again = (await fleet.client.post(path, headers=fleet.admin)).json()
    assert first["acknowledged_by"] == "root"
    assert again["acknowledged_at"] == first["acknowledged_at"]
    await fleet.client.patch("/v1/alert-rules/gpu-xid", headers=fleet.admin, json={"enabled": False})
    ended = await fleet.client.post(path, headers=fleet.admin)
    assert (ended.status_code, ended.json()["error"]) == (409, "state_conflict")
    (alert,) = await _alerts(fleet)
    assert (alert["status"], alert["resolution"]) == ("resolved", "its rule was changed")
    past = await fleet.client.post(
        "/v1/alert-silences", headers=fleet.admin, json={"until": "2020-01-01T00:00:00Z"}
    )
    assert past.status_code == 422


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"signal": "no_such_thing"}, "signal"),
        ({"signal": "gpu_temperature_c; DROP TABLE hosts"}, "signal"),
        ({"threshold": 1e6}, "threshold"),
        ({"threshold": -1}, "threshold"),
        ({"threshold": "NaN"}, "threshold"),
        ({"operator": "~"}, "operator"),
        ({"duration_s": -1}, "duration_s"),
        ({"severity": "deadly"}, "severity"),
        ({"scope": {"host_labels": {"A B": "c"}}}, "scope"),
    ],
)
async def test_bad_rule_is_refused_when_it_is_written(
    fleet: Fleet, changes: dict[str, Any], field: str
) -> None:
    body = {"name": "hot", "signal": "gpu_temperature_c", "threshold": 80}
    answer = await fleet.client.post("/v1/alert-rules", headers=fleet.admin, json=body | changes)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
    assert field in str(answer.json()["data"]["errors"])
    changes.pop("signal", None)
    if changes:
        path = "/v1/alert-rules/gpu-temperature-high"
        assert (await fleet.client.patch(path, headers=fleet.admin, json=changes)).status_code == 422


async def test_rule_that_cannot_be_judged_holds_up_no_other(
    fleet: Fleet, app: FastAPI, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await fleet.host("h1", gpus=1)
    await _beat(agent, xid=31)
    broken = judging.covers

    def fails_for_one(scope: Any, reading: Reading) -> bool:
        if scope.get("objects") == ["broken"]:
            raise RuntimeError("a rule of a newer release")
        return broken(scope, reading)

    monkeypatch.setattr(judging, "covers", fails_for_one)
    await _sql(
        app, """UPDATE alert_rules SET scope = '{"objects": ["broken"]}' WHERE name = 'agent-offline'"""
    )
    await _sql(app, "UPDATE alert_rules SET signal = 'of_another_release' WHERE name = 'cpu-high'")

    async def no_answer(_view: Any) -> list[Reading]:
        raise RuntimeError("nobody home")

    signal = SIGNALS["gpu_memory_percent"]
    monkeypatch.setitem(SIGNALS, signal.name, type(signal)(**{**_fields(signal), "read": no_answer}))
    await _judge(work)
    assert [one["rule"] for one in await _alerts(fleet)] == ["gpu-xid"]
    failed = await _sql(app, "SELECT name FROM alert_rules WHERE last_error IS NOT NULL")
    assert failed == [("gpu-memory-high",)]
    monkeypatch.setitem(SIGNALS, signal.name, signal)
    await _judge(work)
    assert await _sql(app, "SELECT 1 FROM alert_rules WHERE last_error IS NOT NULL") == []


def _fields(signal: Any) -> dict[str, Any]:
    return {name: getattr(signal, name) for name in signal.__dataclass_fields__}


async def test_scope_names_objects_and_labels_of_hosts(fleet: Fleet, work: Work) -> None:
    for name in ("h1", "h2", "h3"):
        agent = await fleet.host(name, gpus=1)
        await _beat(agent, power_w=300.0, power_limit_w=300.0)
    await fleet.client.patch("/v1/hosts/h2", headers=fleet.admin, json={"labels": {"rack": "a1"}})
    base = {"signal": "gpu_power_percent", "threshold": 99, "duration_s": 0}
    for name, scope in (
        ("by-label", {"host_labels": {"rack": "a1"}}),
        ("by-name", {"objects": ["GPU 0 of h3 (simulated)"]}),
    ):
        body = base | {"name": name, "scope": scope}
        assert (await fleet.client.post("/v1/alert-rules", headers=fleet.admin, json=body)).status_code == 201
    await _judge(work)
    fired = {(one["rule"], one["object_name"]) for one in await _alerts(fleet, status="firing")}
    assert fired == {("by-label", "GPU 0 of h2 (simulated)"), ("by-name", "GPU 0 of h3 (simulated)")}
    await fleet.client.delete("/v1/alert-rules/by-name", headers=fleet.admin)
    assert (await fleet.client.delete("/v1/alert-rules/gpu-idle", headers=fleet.admin)).status_code == 409
    (gone,) = await _alerts(fleet, rule="by-name")
    assert (gone["rule_id"], gone["status"]) == (None, "resolved")


async def test_stuck_task_idle_gpu_and_guessed_password_are_told_to_whom_they_concern(
    fleet: Fleet, actors: Actors, app: FastAPI, client: httpx.AsyncClient, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, eve = await actors.user("ada"), await actors.user("eve", customer="other")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.obey()
    body = {"image": "base", "command": ["train"], "gpus": 1, "cpus": 0.1}
    task = (await client.post("/v1/tasks", headers=ada.headers, json=body)).json()["tasks"][0]["id"]
    await agent.claim()
    await _sql(app, "UPDATE attempts SET lease_expires_at = now() - interval '70 seconds'")
    await _sql(app, "UPDATE environments SET idle_since = now() - interval '2 hours'")
    for _ in range(5):
        await client.post("/v1/auth/login", json={"username": "ada", "password": "wrong password"})
    for _ in range(2):
        await _judge(work)
        await _judge(work, loop.SELDOM)
        await _later(app, 61)
    found = {one["rule"]: one for one in await _alerts(fleet, status="firing")}
    assert found["task-stuck"]["object_id"] == task
    assert found["gpu-idle"]["object_id"] == key
    names = {one["object_name"] for one in await _alerts(fleet, rule="login-failures")}
    assert names == {"user ada", "address 192.0.2.10"}
    seen = (await client.get("/v1/alerts", headers=ada.headers)).json()["items"]
    assert {one["rule"] for one in seen} == {"task-stuck", "gpu-idle"}
    told = (await client.get("/v1/notifications", headers=ada.headers)).json()["items"]
    assert [one["data"]["rule"] for one in told if one["kind"] == "alert.triggered"] == ["task-stuck"]
    assert (await client.get("/v1/alerts", headers=eve.headers)).json()["items"] == []
    foreign = await client.get(f"/v1/alerts/{found['task-stuck']['id']}", headers=eve.headers)
    assert foreign.status_code == 404


async def test_every_seeded_rule_can_be_judged_and_every_signal_read(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    await agent.heartbeat(
        host={
            "cpu_percent": 99.0,
            "memory_used_bytes": 127 * 2**30,
            "disk_used_bytes": 97,
            "disk_total_bytes": 100,
        }
    )
    ada = await actors.user("ada")
    await fleet.limit("user", ada.id, gpu_hours=1)
    for _ in range(2):
        await _judge(work)
        await _judge(work, loop.SELDOM)
    assert await _sql(app, "SELECT name FROM alert_rules WHERE last_error IS NOT NULL") == []
    begun = {one["rule"]: one["value"] for one in await _alerts(fleet)}
    assert begun["disk-critical"] == 97.0
    assert {"cpu-high", "memory-high", "disk-low", "disk-high"} <= set(begun)
    for name, signal, sign, threshold, duration_s, severity in SEEDED.SEEDS:
        body = {"name": f"again-{name}", "signal": signal, "operator": sign, "threshold": threshold}
        more = {"duration_s": duration_s, "severity": severity, "enabled": False}
        answer = await fleet.client.post("/v1/alert-rules", headers=fleet.admin, json=body | more)
        assert answer.status_code == 201, answer.text
    assert {signal for _, signal, *_ in SEEDED.SEEDS} == set(SIGNALS)
    listed = (await fleet.client.get("/v1/alert-signals", headers=fleet.admin)).json()["signals"]
    assert [one["name"] for one in listed] == sorted(SIGNALS)
    assert {one.every_s for one in SIGNALS.values()} == {loop.OFTEN_S, loop.SELDOM_S}


async def test_hosts_that_fall_silent_together_are_one_alert_about_the_server(
    fleet: Fleet, app: FastAPI, work: Work
) -> None:
    for name in ("h1", "h2", "h3", "h4"):
        await fleet.host(name, gpus=0)
    await _sql(app, "UPDATE hosts SET last_heartbeat_at = now() - interval '10 minutes' WHERE name <> 'h4'")
    for _ in range(2):
        await _judge(work, hosts_loop.LIVENESS)
        await _judge(work)
        await _later(app, 61)
    fired = await _alerts(fleet, status="firing")
    assert [(one["rule"], one["value"]) for one in fired] == [("hosts-cut-off", 75.0)]


def test_transitions_of_the_migration_equal_the_declaration() -> None:
    frozen = {source: frozenset(targets) for source, targets in SEEDED.ALERT_STATUS.items()}
    assert frozen == ALERT_STATUS


async def test_missing_measurements_are_counted_from_the_last_one(fleet: Fleet, app: FastAPI) -> None:
    agent = await fleet.host("h1", gpus=0)
    never = await fleet.host("h2", gpus=0)
    await _sql(app, "UPDATE hosts SET registered_at = now() - interval '3 days'")
    database = app.state.database
    async with database.sessions() as db:
        at = await db.scalar(sa.text("SELECT now() - interval '20 minutes'"))
        await samples.make_partition(db, samples.HOST_SAMPLES, at.astimezone(UTC).date())
        await db.execute(
            sa.text("INSERT INTO host_samples (host_id, at, n, host, gpus, workloads)"
                    " VALUES (:id, :at, 1, '{}', '{}', '{}')"),
            {"id": agent.host_id, "at": at},
        )  # fmt: skip
        values = {one.object_id: one.value for one in await metrics_missing(View(db, app.state.settings))}
    assert 1200 <= (values[agent.host_id] or 0) < 1300
    assert (values[never.host_id] or 0) >= 3 * 86400, "nothing is kept of it: since it registered"
