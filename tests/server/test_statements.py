"""No N+1: a list takes the same number of SQL statements whether it holds a few rows or ten times as many.

Every GET of the app is walked from its OpenAPI document, so a new endpoint is measured without a line here.
One whose path names something that ``_Rows`` does not make, or whose list stays empty, fails until it does.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent

from remotegpu_server.db import tables
from remotegpu_server.notifications import service as notifications
from remotegpu_server.testing import Actors, Person

FEW, MANY = 3, 30
BUDGET = 25
"""Statements that any one GET may take, authentication included."""
NOT_WALKED = {
    "/v1/tasks/{task_id}/logs:follow": "a stream, a few statements a look",
    "/v1/environments/{environment_id}/logs": "waits for the agent to answer",
    "/v1/agent/attempts/{attempt_id}/input": "bytes of one attempt, a few statements",
    "/metrics": "for machines; no rows",
    "/v1/audit/records:export": "streams everything, a statement a batch",
}


@contextlib.contextmanager
def counting(app: FastAPI) -> Iterator[list[str]]:
    """Collects the SQL statements of both pools."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    engines = [app.state.database.engine.sync_engine, app.state.database.heartbeat_engine.sync_engine]
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", note)


@dataclass
class _Rows:
    """Rows of everything that a list shows, made through the API, and one of each to name in a path."""

    client: httpx.AsyncClient
    fleet: Fleet
    actors: Actors
    admin: Person
    app: FastAPI
    agents: list[HollowAgent] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    made: int = 0

    async def grow(self, to: int) -> None:
        for number in range(self.made, to):
            await self._one_of_each(number)
        self.made = to

    async def _one_of_each(self, number: int) -> None:
        agent = await self.fleet.host(f"host-{number}", gpus=2)
        self.agents.append(agent)
        await agent.heartbeat()
        await self.fleet.image(f"image-{number}")
        await self.actors.customer(f"customer-{number}")
        person = await self.actors.user(f"user-{number}")
        await self._post("/v1/tokens", {"name": f"token-{number}"}, self.admin.headers)
        for _ in range(number):
            await self._post("/v1/tokens", {"name": "own"}, person.headers)
        workspace = await self._post("/v1/workspaces", {"name": f"team {number}"}, self.admin.headers)
        self.named.setdefault("workspace", workspace["id"])
        members = f"/v1/workspaces/{self.named['workspace']}/members"
        await self._post(members, {"user": person.username}, self.admin.headers)
        async with self.app.state.database.sessions() as db:
            me = await db.scalar(sa.text("SELECT id FROM users WHERE username = 'root'"))
            what = {"kind": "test.told", "level": "info", "message": f"News {number}."}
            await notifications.tell(db, user_ids=[me], subject_type="user", subject_id=me, **what)
            await db.commit()
        hook = {"url": "https://example.org/x", "events": ["job.failed"]}
        made = await self._post("/v1/webhooks", hook, self.admin.headers)
        self.named.setdefault("webhook_id", made["webhook"]["id"])
        test = f"/v1/webhooks/{self.named['webhook_id']}:test"
        assert (await self.client.post(test, headers=self.admin.headers)).status_code == 200
        rule = {"name": f"rule-{number}", "signal": "gpu_temperature_c", "threshold": 80}
        await self._post("/v1/alert-rules", rule, self.admin.headers)
        await self._post("/v1/alert-silences", {"until": _in_hours(1 + number)}, self.admin.headers)
        self.named |= {"rule": "rule-0", "alert_id": await self.actors.alert(f"host-{number}")}
        preference = f"/v1/notification-preferences/test.kind{number}"
        answer = await self.client.put(preference, json={"mail": "off"}, headers=self.admin.headers)
        assert answer.status_code == 200, answer.text
        key = await self._post(
            "/v1/ssh-keys",
            {"name": "key", "public_key": f"ssh-ed25519 {_public_key(number)}"},
            self.admin.headers,
        )
        later = {"starts_at": "2099-01-01T00:00:00Z", "ends_at": "2099-02-01T00:00:00Z"}
        lent = {"host": f"host-{number}", "customer": "default", **later}
        dedication = await self._post("/v1/dedications", lent, self.admin.headers)
        reserved = {"name": "course", "gpus": 1, "starts_at": _in_hours(30 + number)}
        reserved["ends_at"] = _in_hours(31 + number)
        reservation = await self._post("/v1/reservations", reserved, self.admin.headers)
        running = (await self.fleet.create(self.admin.headers, f"env-{number}", gpus=1)).json()["id"]
        await self.fleet.create(self.admin.headers, f"waits-{number}", gpus=2, gpu_models=["A100-80GB"])
        await agent.obey()
        await self._tasks(number, agent)
        await self.fleet.limit("user", person.id, gpus=1)
        more = {"resource": "gpus", "amount": 2, "why": "work", "subject_id": person.id}
        asked = await self._post("/v1/quota-requests", more, self.admin.headers)
        await self._post("/v1/quota-policies", {"name": f"policy-{number}"}, self.admin.headers)
        self.named |= {
            "customer": "default",
            "user": person.id,
            "host": agent.host_id,
            "gpu": agent.gpus[0]["uuid"],
            "dedication": dedication["id"],
            "image": "base",
            "key_id": key["id"],
            "volume_id": await self._volume(person, agent),
            "reservation_id": reservation["id"],
            "environment_id": self.named.get("environment_id", running),
            "subject": "user",
            "subject_id": person.id,
            "policy": "basic",
            "quota_request": asked["id"],
            "key": "system.name",
        }
        await self._save_and_fail(number)

    async def _tasks(self, number: int, agent: HollowAgent) -> None:
        """One that holds a GPU, one that waits for it, and one attempt more of the first task."""
        body = {"image": "base", "command": ["train"], "gpus": 1, "cpus": 0.1}
        first = (await self._post("/v1/tasks", body, self.admin.headers))["tasks"][0]["id"]
        self.named.setdefault("task_id", first)
        after = [{"task_id": first, "condition": "after_any"}]
        await self._post("/v1/tasks", body | {"depends_on": after}, self.admin.headers)
        array = await self._post("/v1/tasks", body | {"array": {"size": 2}}, self.admin.headers)
        spec = {"image": "base", "command": ["train"]}
        schedule = {"name": f"schedule-{number}", "cron": "0 5 * * *", "task": spec}
        made = await self._post("/v1/task-schedules", schedule, self.admin.headers)
        self.named |= {"array_id": array["array_id"], "schedule_id": made["id"]}
        async with self.app.state.database.sessions() as db:
            task, row = tables.Task, tables.Attempt
            named = self.named["task_id"]
            await db.execute(sa.update(task).where(task.id == named).values(generation=number + 2))
            of = {"task_id": named, "number": number + 2, "host_id": agent.host_id, "status": "failed"}
            ended = {"message": "Failed.", "claimed_at": sa.func.now(), "finished_at": sa.func.now()}
            attempt = tables.new_id("att")
            await db.execute(sa.insert(row).values(id=attempt, **of, **ended))
            left = {"path": "model.bin", "size_bytes": 0, "sha256": "0" * 64, "completed_at": sa.func.now()}
            artifact = tables.new_id("art")
            await db.execute(sa.insert(tables.Artifact).values(id=artifact, attempt_id=attempt, **left))
            await db.commit()
        self.named["artifact_id"] = artifact

    async def _volume(self, person: Person, agent: HollowAgent) -> str:
        """One home more, of somebody who has started nothing."""
        volume = f"vol-of-{person.username}"
        async with self.app.state.database.sessions() as db:
            row = tables.Volume
            await db.execute(sa.insert(row).values(id=volume, owner_id=person.id, host_id=agent.host_id))
            await db.commit()
        return volume

    async def _save_and_fail(self, number: int) -> None:
        """One save more of the named environment, which lies on the first host; it ends at once."""
        path = f"/v1/environments/{self.named['environment_id']}:save-image"
        asked = await self.client.post(path, json={"name": f"saved-{number}"}, headers=self.admin.headers)
        assert asked.status_code == 202, asked.text
        agent = self.agents[0]
        report = {"epoch": agent.epoch, "progress_bytes": 0, "reason": "host_failed"}
        answer = await self.client.put(
            f"/v1/agent/image-saves/{asked.json()['id']}", json=report, headers=agent.headers
        )
        assert answer.status_code == 204, answer.text

    async def _post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        answer = await self.client.post(path, json=body, headers=headers)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found


def _in_hours(hours: int) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()


def _public_key(number: int) -> str:
    fields = (b"ssh-ed25519", number.to_bytes(32))
    return base64.b64encode(b"".join(len(one).to_bytes(4) + one for one in fields)).decode()


def _gets(app: FastAPI) -> list[tuple[str, list[str]]]:
    """Path and names of its query parameters, for every GET that is walked."""
    return [
        (path, [one["name"] for one in operations["get"].get("parameters", []) if one["in"] == "query"])
        for path, operations in app.openapi()["paths"].items()
        if "get" in operations and path not in NOT_WALKED
    ]


async def _walk(app: FastAPI, rows: _Rows, *, listed: int) -> dict[str, int]:
    """Statements by path. Each GET is asked twice: the first warms what a process keeps."""
    counts = {}
    for path, query in _gets(app):
        names = re.findall(r"{(\w+)}", path)
        unknown = set(names) - set(rows.named)
        assert not unknown, f"{path}: teach _Rows to make a {', '.join(unknown)}"
        headers, params = rows.admin.headers, {"limit": "200"} if "limit" in query else {}
        if path.startswith("/v1/agent/"):
            agent = rows.agents[0]
            headers, params = agent.headers, {"epoch": str(agent.epoch), "wait_s": "0"}
        url = path.format(**rows.named)
        await rows.client.get(url, headers=headers, params=params)
        with counting(app) as statements:
            answer = await rows.client.get(url, headers=headers, params=params)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        if "cursor" in query:
            assert len(answer.json()["items"]) >= listed, f"{path}: teach _Rows to fill this list"
        counts[path] = len(statements)
    return counts


@pytest.mark.timeout(300)
async def test_every_get_takes_as_many_statements_for_many_rows_as_for_few(
    app: FastAPI, client: httpx.AsyncClient, fleet: Fleet, actors: Actors
) -> None:
    admin = Person(id="", username="root", customer_id="", secret=fleet.admin["Authorization"][7:])
    rows = _Rows(app=app, client=client, fleet=fleet, actors=actors, admin=admin)
    await rows.grow(FEW)
    few = await _walk(app, rows, listed=FEW)
    await rows.grow(MANY)
    many = await _walk(app, rows, listed=MANY)
    assert {path: (few[path], many[path]) for path in few if few[path] != many[path]} == {}
    assert {path: count for path, count in many.items() if count > BUDGET} == {}
