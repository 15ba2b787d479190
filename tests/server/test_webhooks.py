"""Webhooks and a real server: signed, retried, one that hangs delays nobody, none reaches inside."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet

from remotegpu_server import egress
from remotegpu_server.alerts.signals import View, platform
from remotegpu_server.events import subscribers
from remotegpu_server.loops import Work
from remotegpu_server.outbox import webhook_loop
from remotegpu_server.testing import Actors, Person


@dataclass
class Target:
    """A small HTTP server that keeps what it gets and answers as its path says."""

    url: str = ""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = head[0].split()[1]
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.got.append((path, headers, body))
            if path.startswith("/hang"):
                await asyncio.sleep(30)
            answer = {"/500": "500 broken", "/loop": f"302 found\r\nLocation: {self.url}/inner"}
            status = answer.get(path, "204 taken")
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        finally:
            writer.close()

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.got]


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    made = Target()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()


@pytest.fixture
async def ada(actors: Actors) -> Person:
    return await actors.user("ada")


async def _sql(app: FastAPI, statement: str) -> list[Any]:
    async with app.state.database.sessions() as db:
        found = await db.execute(sa.text(statement))
        rows = [tuple(row) for row in found] if found.returns_rows else []
        await db.commit()
        return rows


async def _allow_loopback(fleet: Fleet) -> None:
    path = "/v1/settings/webhooks.allowed_networks"
    answer = await fleet.client.patch(path, headers=fleet.admin, json={"value": "127.0.0.0/8"})
    assert answer.status_code == 200, answer.text


async def _hook(fleet: Fleet, who: Person, url: str, *events: str) -> dict[str, Any]:
    body = {"url": url, "events": events or ["environment.created"]}
    answer = await fleet.client.post("/v1/webhooks", headers=who.headers, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def _deliver(work: Work) -> None:
    async with work.database.sessions() as db:
        assert await work.candidate.acquire(db)
        await db.commit()
    await webhook_loop.deliver(work)


async def _log(fleet: Fleet, who: Person, made: dict[str, Any]) -> list[dict[str, Any]]:
    path = f"/v1/webhooks/{made['webhook']['id']}/deliveries"
    found: list[dict[str, Any]] = (await fleet.client.get(path, headers=who.headers)).json()["items"]
    return found


async def test_event_of_the_own_is_delivered_once_and_its_signature_verifies(
    fleet: Fleet, actors: Actors, app: FastAPI, ada: Person, target: Target, work: Work
) -> None:
    await _allow_loopback(fleet)
    bob = await actors.user("bob")
    made = await _hook(fleet, ada, f"{target.url}/ok", "environment.created", "environment.started")
    await _hook(fleet, bob, f"{target.url}/bob")
    agent = await fleet.host("h1", gpus=1)
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.obey()
    for _ in range(2):
        await _deliver(work)
    assert target.paths() == ["/ok", "/ok"], "what happened in ada's own workspace is none of bob's"
    _, headers, body = target.got[0]
    secret = base64.b64decode(made["secret"].removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 600
    told = [json.loads(one) for _, _, one in target.got]
    assert [one["type"] for one in told] == ["environment.created", "environment.started"]
    assert {one["data"]["subject_id"] for one in told} == {key}
    log = await _log(fleet, ada, made)
    assert [(one["attempts"], one["error"], one["next_attempt_at"]) for one in log] == [(1, None, None)] * 2
    stored = await _sql(app, "SELECT string_agg(w::text, '') FROM webhooks w")
    assert made["secret"].removeprefix("whsec_") not in stored[0][0]
    shown = await fleet.client.get(f"/v1/webhooks/{made['webhook']['id']}", headers=ada.headers)
    assert "whsec_" not in shown.text


async def test_target_that_hangs_redirects_or_fails_is_tried_again_and_delays_nobody(
    fleet: Fleet, app: FastAPI, ada: Person, target: Target, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "TIMEOUT_S", 2.0)
    await _allow_loopback(fleet)
    hooks = {path: await _hook(fleet, ada, target.url + path) for path in ("/hang", "/loop", "/500", "/ok")}
    for made in hooks.values():
        for _ in range(2):
            path = f"/v1/webhooks/{made['webhook']['id']}:test"
            assert (await fleet.client.post(path, headers=ada.headers)).status_code == 200
    await _deliver(work)
    assert sorted(target.paths()) == ["/500", "/hang", "/loop", "/ok", "/ok"], "and no redirect is followed"
    errors = {}
    for path, made in hooks.items():
        errors[path] = sorted({one["error"] or "" for one in await _log(fleet, ada, made)})
    assert errors == {
        "/hang": ["", "no answer within 2 seconds"],
        "/loop": ["", "it answered 302; redirects are not followed"],
        "/500": ["", "it answered 500"],
        "/ok": [""],
    }
    await _deliver(work)
    assert len(target.got) == 5, "they pause"
    await _sql(app, "UPDATE webhooks SET paused_until = now(), url = replace(url, '/500', '/mended')")
    await _sql(app, "UPDATE outbox SET due_at = now()")
    await _deliver(work)
    assert target.paths().count("/mended") == 2
    assert (await _log(fleet, ada, hooks["/500"]))[0]["delivered_at"] is not None


async def test_url_that_cannot_be_read_fails_alone(
    fleet: Fleet, app: FastAPI, ada: Person, target: Target, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _allow_loopback(fleet)
    hooks = [await _hook(fleet, ada, target.url + path) for path in ("/odd", "/broken", "/ok")]
    for made in hooks:
        path = f"/v1/webhooks/{made['webhook']['id']}:test"
        assert (await fleet.client.post(path, headers=ada.headers)).status_code == 200
    # Made before such names were refused.
    await _sql(app, "UPDATE webhooks SET url = 'https://a..b.example/odd' WHERE url LIKE '%/odd'")
    posts = egress.post

    async def post(url: str, **more: Any) -> int:
        if url.endswith("/broken"):
            raise RuntimeError("a bug about this one")
        return await posts(url, **more)

    monkeypatch.setattr(egress, "post", post)
    await _deliver(work)
    assert target.paths() == ["/ok"]
    logs = [(await _log(fleet, ada, made))[0] for made in hooks]
    assert "no name that can be looked up" in logs[0]["error"]
    assert [one["delivered_at"] is not None for one in logs] == [False, False, True]
    monkeypatch.setattr(egress, "check_url", lambda *_: None)
    await _sql(app, "UPDATE outbox SET due_at = now(), leased_until = NULL")
    await _sql(app, "UPDATE webhooks SET paused_until = NULL")
    await _deliver(work)
    assert "UnicodeError" in (await _log(fleet, ada, hooks[0]))[0]["error"]


async def test_pass_with_a_backlog_ends_before_its_deadline(
    fleet: Fleet, ada: Person, target: Target, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_loop, "_CLAIMS_S", 0.0)
    monkeypatch.setattr(webhook_loop, "_BATCH", 1)
    await _allow_loopback(fleet)
    made = await _hook(fleet, ada, f"{target.url}/ok")
    for _ in range(2):
        await fleet.client.post(f"/v1/webhooks/{made['webhook']['id']}:test", headers=ada.headers)
    for sent in (1, 2):
        await _deliver(work)
        assert len(target.got) == sent


async def test_names_that_are_slow_to_look_up_hold_nobody_else(target: Target) -> None:
    threads, release = ThreadPoolExecutor(1), threading.Event()
    asyncio.get_running_loop().set_default_executor(threads)
    held = asyncio.get_running_loop().run_in_executor(None, release.wait)
    port = target.url.rpartition(":")[2]
    allowed = egress.parse_networks("127.0.0.0/8, ::1/128")
    try:
        assert await egress.post(f"http://localhost:{port}/x", body=b"", headers={}, allowed=allowed) == 204
    finally:
        release.set()
        await held


async def test_webhook_of_an_admin_is_not_there_for_owners_of_the_customer(
    fleet: Fleet, actors: Actors, ada: Person
) -> None:
    boss, root = await actors.user("boss", role="owner"), await actors.admin("root2")
    of_admin = (await _hook(fleet, root, "https://example.org/x"))["webhook"]["id"]
    of_member = (await _hook(fleet, ada, "https://example.org/x"))["webhook"]["id"]
    calls: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("GET", "/deliveries", None),
        ("PATCH", "", {"events": ["job.failed"]}),
        ("PATCH", "", {"url": "https://evil.example/x"}),
        ("POST", ":rotate-secret", None),
        ("POST", ":test", None),
        ("DELETE", "", None),
    ]

    async def answers(who: Person, hook: str) -> list[int]:
        return [
            (
                await fleet.client.request(method, f"/v1/webhooks/{hook}{more}", headers=who.headers, json=b)
            ).status_code
            for method, more, b in calls
        ]

    assert await answers(boss, of_admin) == [404] * 7
    assert await answers(boss, of_member) == [200, 200, 200, 403, 403, 200, 204]
    assert await answers(root, of_admin) == [200] * 6 + [204]


async def test_what_waits_for_a_webhook_that_is_off_alerts_nobody(
    fleet: Fleet, app: FastAPI, ada: Person
) -> None:
    made = await _hook(fleet, ada, "https://example.org/x")
    path = f"/v1/webhooks/{made['webhook']['id']}"
    await fleet.client.post(f"{path}:test", headers=ada.headers)
    await _sql(app, "UPDATE outbox SET created_at = now() - interval '2 hours'")

    async def waiting() -> dict[str, float]:
        async with app.state.database.sessions() as db:
            found = await platform.outbox_waiting(View(db, app.state.settings))
            return {one.object_id: one.value for one in found}

    assert (await waiting())["webhook"] >= 7200
    await fleet.client.patch(path, headers=ada.headers, json={"enabled": False})
    assert await waiting() == {"mail": 0.0, "webhook": 0.0}


async def test_webhook_that_takes_nothing_for_a_day_is_switched_off_and_its_owner_told(
    fleet: Fleet, app: FastAPI, ada: Person, target: Target, work: Work
) -> None:
    await _allow_loopback(fleet)
    made = await _hook(fleet, ada, f"{target.url}/500")
    for _ in range(2):
        await fleet.client.post(f"/v1/webhooks/{made['webhook']['id']}:test", headers=ada.headers)
    await _deliver(work)
    day = "interval '25 hours'"
    await _sql(app, f"UPDATE webhooks SET failing_since = failing_since - {day}, paused_until = NULL")  # noqa: S608
    await _deliver(work)
    hook = await fleet.client.get(f"/v1/webhooks/{made['webhook']['id']}", headers=ada.headers)
    assert hook.json()["enabled"] is False
    assert all(one["given_up_at"] for one in await _log(fleet, ada, made))
    (told,) = (await fleet.client.get("/v1/notifications", headers=ada.headers)).json()["items"]
    assert told["kind"] == "webhook.given_up"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x",
        "https://127.0.0.1/x",
        "https://10.1.2.3/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[64:ff9b::7f00:1]/x",
        "https://[fe80::1]/x",
        "https://0.0.0.0/x",
        "https://224.0.0.1/x",
        "https://[fec0::1]/x",
        "https://a..b.example/x",
        f"https://{'a' * 64}.example/x",
        "https://xn--a.example/x",
        "https://user:secret@example.org/x",
        "https://example.org/x#fragment",
        "https:///x",
        "file:///etc/passwd",
    ],
)
async def test_url_that_leads_inside_is_refused(fleet: Fleet, ada: Person, url: str) -> None:
    body = {"url": url, "events": ["job.failed"]}
    answer = await fleet.client.post("/v1/webhooks", headers=ada.headers, json=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


async def test_name_that_leads_inside_is_refused_when_it_is_resolved(target: Target) -> None:
    port = target.url.rpartition(":")[2]
    with pytest.raises(egress.EgressRefused, match="no public address"):
        await egress.post(f"https://localhost:{port}/x", body=b"{}", headers={}, allowed=[])
    allowed = egress.parse_networks("127.0.0.0/8, ::1/128")
    assert await egress.post(f"http://localhost:{port}/x", body=b"{}", headers={}, allowed=allowed) == 204
    assert target.got[0][1]["host"] == f"localhost:{port}"
    with pytest.raises(egress.EgressRefused):
        await egress.post(
            f"http://localhost:{port}/x", body=b"", headers={}, allowed=[ipaddress.ip_network("10.0.0.0/8")]
        )


async def test_setting_of_allowed_networks_takes_networks_only(fleet: Fleet) -> None:
    path = "/v1/settings/webhooks.allowed_networks"
    for value in ("everything", "10.0.0.1/8", "10.0.0.0/99"):
        answer = await fleet.client.patch(path, headers=fleet.admin, json={"value": value})
        assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


def test_events_are_told_under_the_names_of_the_contract() -> None:
    def named(kind: str, **data: Any) -> str:
        return str(subscribers.told_as(subscribers.Happened(kind, "x", "x", "x", None, "", data)))

    assert named("task.status", to="succeeded") == "job.completed"
    assert named("task.status", to="timed_out") == "job.failed"
    assert named("task.status", to="running") == "None"
    assert named("environment.status", to="stopped") == "environment.stopped"
    assert named("quota.storage_exceeded") == "quota.exceeded"
    assert named("alert.triggered") == "alert.triggered"
