"""Profiles, suspension and its policies, deletion, and the forced change of a one-time password."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet

from remotegpu_server.customers import loop
from remotegpu_server.db import tables
from remotegpu_server.loops import Work
from remotegpu_server.testing import PASSWORD, Actors, LiveServer, Person


@pytest.fixture
async def admin(actors: Actors) -> Person:
    return await actors.admin()


@pytest.fixture
async def ada(actors: Actors) -> Person:
    return await actors.user("ada", customer="physics")


async def _login(client: httpx.AsyncClient, username: str, password: str = PASSWORD) -> httpx.Response:
    return await client.post("/v1/auth/login", json={"username": username, "password": password})


async def test_profile_change_survives_a_new_login(client: httpx.AsyncClient, ada: Person) -> None:
    profile = {
        "display_name": "Ada",
        "full_name": "Ada Lovelace",
        "phone": "+44 20 7946 0018",
        "email": "Ada@example.org",
        "avatar_url": "https://example.org/ada.png",
    }
    assert (await client.patch("/v1/me", json=profile, headers=ada.headers)).status_code == 200
    found = (await _login(client, "ada")).json()["user"]
    assert {name: found[name] for name in profile} == profile


@pytest.mark.parametrize(
    "field",
    [{"role": "admin"}, {"status": "active"}, {"avatar_url": "javascript:alert(1)"}, {"phone": "call me"}],
)
async def test_profile_takes_nothing_else(
    client: httpx.AsyncClient, ada: Person, field: dict[str, Any]
) -> None:
    assert (await client.patch("/v1/me", json=field, headers=ada.headers)).status_code == 422


async def test_email_is_unique_whatever_its_case_and_free_after_deletion(
    client: httpx.AsyncClient, admin: Person, ada: Person
) -> None:
    await client.patch("/v1/me", json={"email": "ada@example.org"}, headers=ada.headers)
    body = {"username": "eve", "email": "ADA@example.org"}
    refused = await client.post("/v1/users", json=body, headers=admin.headers)
    assert (refused.status_code, refused.json()["error"]) == (409, "name_taken")
    assert (await client.delete("/v1/users/ada", headers=admin.headers)).status_code == 204
    assert (await client.post("/v1/users", json=body, headers=admin.headers)).status_code == 201


async def test_parallel_creates_of_one_address_make_one_account(
    client: httpx.AsyncClient, admin: Person
) -> None:
    answers = await asyncio.gather(
        *[
            client.post(
                "/v1/users",
                json={"username": f"u{number}", "email": "same@example.org", "password": PASSWORD},
                headers=admin.headers,
            )
            for number in range(4)
        ]
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


async def test_one_time_password_allows_nothing_but_its_change(
    client: httpx.AsyncClient, actors: Actors, admin: Person
) -> None:
    made = await client.post("/v1/users", json={"username": "grace"}, headers=admin.headers)
    one_time = made.json()["one_time_password"]
    signed_in = await _login(client, "grace", one_time)
    assert signed_in.json()["user"]["password_change_required"] is True
    headers = {"Authorization": f"Bearer {signed_in.json()['secret']}"}
    hub = {"Authorization": f"Bearer {await actors.hub()}", "X-RemoteGPU-On-Behalf-Of": "grace"}
    for caller in (headers, hub):
        refused = await client.get("/v1/environments", headers=caller)
        assert (refused.status_code, refused.json()["error"]) == (403, "password_change_required")
        assert (await client.get("/v1/me", headers=caller)).status_code == 200
    assert (await client.post("/v1/tokens", json={"name": "x"}, headers=headers)).status_code == 403

    change = {"current_password": one_time, "new_password": "a password of my own"}
    assert (await client.post("/v1/me/password", json=change, headers=headers)).status_code == 204
    assert (await client.get("/v1/environments", headers=headers)).status_code == 200


async def test_changing_to_the_same_password_is_refused(client: httpx.AsyncClient, ada: Person) -> None:
    change = {"current_password": PASSWORD, "new_password": PASSWORD}
    answer = await client.post("/v1/me/password", json=change, headers=ada.headers)
    assert answer.status_code == 422


@pytest.mark.parametrize("account", ["users/ada", "customers/physics"])
@pytest.mark.parametrize(
    ("policy", "left"),
    [
        ({"environments": "keep"}, "running"),
        ({"environments": "stop"}, "stopping"),
        ({"environments": "stop_after_grace", "grace_s": 600}, "running"),
        ({"environments": "stop_after_grace", "grace_s": 0}, "stopping"),
    ],
)
async def test_suspension_does_with_running_work_what_its_policy_says(
    fleet: Fleet,
    actors: Actors,
    client: httpx.AsyncClient,
    ada: Person,
    work: Work,
    account: str,
    policy: dict[str, Any],
    left: str,
) -> None:
    agent = await fleet.host("h1", gpus=1)
    admin = await actors.admin("second")
    running = (await fleet.create(ada.headers, "runs", gpus=1)).json()["id"]
    await agent.observe(running, "running", address="http://192.0.2.1:1")
    waiting = (await fleet.create(ada.headers, "waits", gpus=1)).json()["id"]

    suspended = await client.post(f"/v1/{account}:suspend", json=policy, headers=admin.headers)
    assert suspended.status_code == 200, suspended.text
    await loop.withdraw_and_stop(work)
    withdrawn = await fleet.get(admin.headers, waiting)
    assert (withdrawn["status"], withdrawn["reason"]) == ("stopped", "suspended")
    assert (await fleet.get(admin.headers, running))["status"] == left


async def test_grace_ends_with_the_suspension(
    fleet: Fleet, client: httpx.AsyncClient, ada: Person, work: Work, app: FastAPI
) -> None:
    agent = await fleet.host("h1", gpus=1)
    running = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.observe(running, "running", address="http://192.0.2.1:1")
    policy = {"environments": "stop_after_grace", "grace_s": 600}
    await client.post("/v1/customers/physics:suspend", json=policy, headers=fleet.admin)
    resumed = await client.post("/v1/customers/physics:resume", headers=fleet.admin)
    assert resumed.json()["stop_environments_at"] is None

    await client.post("/v1/customers/physics:suspend", json=policy, headers=fleet.admin)
    async with app.state.database.sessions() as db:
        await db.execute(
            sa.update(tables.Customer)
            .where(tables.Customer.name == "physics")
            .values(stop_environments_at=sa.func.now())
        )
        await db.commit()
    await loop.withdraw_and_stop(work)
    assert (await fleet.get(fleet.admin, running))["status"] == "stopping"


async def test_suspension_reaches_tokens_streams_and_work_within_five_seconds(
    live_server: LiveServer,
) -> None:
    admin = live_server.admin_headers
    async with httpx.AsyncClient(base_url=live_server.url, timeout=10) as client:
        body = {"username": "ada", "password": PASSWORD}
        assert (await client.post("/v1/users", json=body, headers=admin)).status_code == 201
        secret = (await _login(client, "ada")).json()["secret"]
        headers = {"Authorization": f"Bearer {secret}"}
        image = {"name": "base", "reference": "example.org/base:1"}
        await client.post("/v1/images", json=image, headers=admin)
        waiting = await client.post("/v1/environments", json={"name": "w", "image": "base"}, headers=headers)
        assert waiting.json()["status"] == "pending"
        stream = {**headers, "Accept": "text/event-stream"}
        async with client.stream("GET", "/v1/events", headers=stream, timeout=10) as events:
            lines = events.aiter_lines()
            assert (await anext(lines)).startswith("id:")
            began = time.monotonic()
            assert (await client.post("/v1/users/ada:suspend", headers=admin)).status_code == 200
            assert (await client.get("/v1/me", headers=headers)).status_code == 401
            last = [line async for line in lines][-2:]
            assert "event: end" in "\n".join(last) or last[-1] == ""
        path = f"/v1/environments/{waiting.json()['id']}"
        while (found := (await client.get(path, headers=admin)).json())["status"] != "stopped":
            assert time.monotonic() - began < 5
            await asyncio.sleep(0.05)
        assert found["reason"] == "suspended"
        assert time.monotonic() - began < 5


async def test_deleted_user_is_gone_and_its_name_stays_taken(
    client: httpx.AsyncClient, actors: Actors, admin: Person, ada: Person
) -> None:
    hub = {"Authorization": f"Bearer {await actors.hub()}", "X-RemoteGPU-On-Behalf-Of": "ada"}
    assert (await client.delete("/v1/users/ada", headers=admin.headers)).status_code == 204
    assert (await client.get("/v1/me", headers=ada.headers)).status_code == 401
    assert (await client.get("/v1/me", headers=hub)).json()["error"] == "account_suspended"
    assert (await _login(client, "ada")).json()["error"] == "invalid_credentials"
    again = await client.post("/v1/users", json={"username": "ada"}, headers=admin.headers)
    assert (again.status_code, again.json()["error"]) == (409, "name_taken")
    listed = (await client.get("/v1/users", headers=admin.headers)).json()["items"]
    assert "ada" not in {user["username"] for user in listed}
    for verb in ("resume", "suspend", "reset-password"):
        answer = await client.post(f"/v1/users/ada:{verb}", headers=admin.headers)
        assert (answer.status_code, answer.json()["error"]) == (409, "state_conflict"), verb


async def test_owner_of_a_team_workspace_hands_it_over_before_deletion(
    client: httpx.AsyncClient, admin: Person, ada: Person
) -> None:
    made = await client.post("/v1/workspaces", json={"name": "Team"}, headers=ada.headers)
    refused = await client.delete("/v1/users/ada", headers=admin.headers)
    assert (refused.status_code, refused.json()["data"]) == (409, {"workspaces": ["Team"]})
    await client.delete(f"/v1/workspaces/{made.json()['id']}", headers=ada.headers)
    assert (await client.delete("/v1/users/ada", headers=admin.headers)).status_code == 204


async def test_customer_shows_computed_counts_to_its_owners(
    fleet: Fleet, client: httpx.AsyncClient, actors: Actors, ada: Person
) -> None:
    owner = await actors.user("olga", customer="physics", role="owner")
    await fleet.host("h1", gpus=2)
    assert (await fleet.create(ada.headers, gpus=2)).status_code == 201
    found = (await client.get("/v1/customers/physics", headers=owner.headers)).json()
    assert (found["users"], found["environments"], found["gpus"]) == (2, 1, 2)
    assert (await client.get("/v1/customers/default", headers=owner.headers)).status_code == 404
    assert (await client.get("/v1/customers/physics", headers=ada.headers)).status_code == 403
    listed = (await client.get("/v1/customers", headers=fleet.admin)).json()["items"]
    assert {one["name"]: one["gpus"] for one in listed}["physics"] == 2


async def test_customer_code_is_unique(client: httpx.AsyncClient, admin: Person) -> None:
    body = {"name": "one", "code": "KST-7", "company": "ACME"}
    assert (await client.post("/v1/customers", json=body, headers=admin.headers)).status_code == 201
    second = await client.post("/v1/customers", json=body | {"name": "two"}, headers=admin.headers)
    assert (second.status_code, second.json()["data"]) == (409, {"code": "KST-7"})


@pytest.mark.parametrize("verb", ["create", "start"])
async def test_request_that_signed_in_before_a_suspension_committed_starts_nothing(
    verb: str, fleet: Fleet, app: FastAPI, ada: Person
) -> None:
    agent = await fleet.host("h1", gpus=1)
    key = ""
    if verb == "start":
        key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
        await fleet.act(ada.headers, key, "stop")
        await agent.obey()
    async with app.state.database.sessions() as suspending:
        user = tables.User
        await suspending.execute(sa.update(user).where(user.id == ada.id).values(status="suspended"))
        token = tables.Token
        await suspending.execute(
            sa.update(token).where(token.user_id == ada.id).values(revoked_at=sa.func.now())
        )
        creates = verb == "create"
        meanwhile = asyncio.create_task(
            fleet.create(ada.headers, gpus=1) if creates else fleet.act(ada.headers, key, "start")
        )
        await _somebody_waits_for_a_lock(app)
        await suspending.commit()
    answer = await meanwhile
    assert (answer.status_code, answer.json()["error"]) == (403, "account_suspended")
    assert await fleet.gpus_free() == 1


async def _somebody_waits_for_a_lock(app: FastAPI) -> None:
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10):
        while True:
            async with app.state.database.sessions() as db:
                if await db.scalar(waiting):
                    return
            await asyncio.sleep(0.02)
