"""Signing in, tokens, users and customers, through the API."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from remotegpu.types.identity import Scope
from remotegpu_server.db import tables
from remotegpu_server.testing import PASSWORD, Actors, Person


async def _login(client: httpx.AsyncClient, username: str, password: str = PASSWORD) -> httpx.Response:
    return await client.post("/v1/auth/login", json={"username": username, "password": password})


@pytest.fixture
async def ada(actors: Actors) -> Person:
    return await actors.user("ada")


@pytest.fixture
async def admin(actors: Actors) -> Person:
    return await actors.admin()


async def test_login_right_password_answers_working_token(client: httpx.AsyncClient, ada: Person) -> None:
    answer = await _login(client, "ada")
    assert answer.status_code == 201
    made = answer.json()
    assert made["secret"].startswith("rgu_")
    assert made["user"]["username"] == "ada"

    me = await client.get("/v1/me", headers={"Authorization": f"Bearer {made['secret']}"})
    assert me.json()["user"]["id"] == ada.id
    assert me.json()["token"]["id"] == made["token"]["id"]


async def test_login_name_in_capitals_is_the_same_account(client: httpx.AsyncClient, ada: Person) -> None:
    assert (await _login(client, "Ada")).status_code == 201


async def test_wrong_password_and_unknown_name_get_the_same_answer(
    client: httpx.AsyncClient, ada: Person
) -> None:
    wrong = await _login(client, "ada", "not the password")
    unknown = await _login(client, "nobody", "not the password")
    assert wrong.status_code == unknown.status_code == 401
    assert {**wrong.json(), "request_id": ""} == {**unknown.json(), "request_id": ""}
    assert wrong.json()["error"] == "invalid_credentials"


@pytest.mark.parametrize("username", ["ada", "nobody"])
async def test_guessing_is_limited_for_known_and_unknown_names_alike(
    client: httpx.AsyncClient, ada: Person, username: str
) -> None:
    for _ in range(10):
        assert (await _login(client, username, "wrong")).status_code == 401
    refused = await _login(client, username, PASSWORD)
    assert refused.status_code == 429
    assert refused.json()["error"] == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 300


async def test_parallel_guesses_do_not_pass_the_limit(client: httpx.AsyncClient, ada: Person) -> None:
    answers = await asyncio.gather(*[_login(client, "ada", "wrong") for _ in range(16)])
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [401] * 10 + [429] * 6


async def test_guessing_from_one_address_is_limited_over_many_names(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    async with app.state.database.sessions() as db:
        await db.execute(
            sa.insert(tables.LoginFailure), [{"subject": "address:192.0.2.10"} for _ in range(50)]
        )
        await db.commit()
    assert (await _login(client, "somebody", "wrong")).status_code == 429


async def test_right_password_clears_the_count_of_the_account(client: httpx.AsyncClient, ada: Person) -> None:
    for _ in range(9):
        await _login(client, "ada", "wrong")
    assert (await _login(client, "ada")).status_code == 201
    assert (await _login(client, "ada", "wrong")).status_code == 401


async def test_forwarded_address_from_anybody_is_not_believed(
    client: httpx.AsyncClient, app: FastAPI, ada: Person
) -> None:
    await client.post(
        "/v1/auth/login",
        json={"username": "ada", "password": "wrong"},
        headers={"X-Forwarded-For": "198.51.100.7"},
    )
    async with app.state.database.sessions() as db:
        subjects = set(await db.scalars(sa.select(tables.LoginFailure.subject)))
    assert "address:192.0.2.10" in subjects
    assert "address:198.51.100.7" not in subjects


async def test_hub_verifies_password_and_names_the_client(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors, ada: Person
) -> None:
    headers = {"Authorization": f"Bearer {await actors.hub()}", "X-Forwarded-For": "198.51.100.7"}
    good = await client.post(
        "/v1/auth/verify", json={"username": "ada", "password": PASSWORD}, headers=headers
    )
    assert (good.status_code, good.json()["username"]) == (200, "ada")

    bad = await client.post("/v1/auth/verify", json={"username": "ada", "password": "wrong"}, headers=headers)
    assert bad.status_code == 401
    async with app.state.database.sessions() as db:
        subjects = set(await db.scalars(sa.select(tables.LoginFailure.subject)))
    assert "address:198.51.100.7" in subjects


async def test_verify_is_for_services_only(client: httpx.AsyncClient, ada: Person) -> None:
    answer = await client.post(
        "/v1/auth/verify", json={"username": "ada", "password": PASSWORD}, headers=ada.headers
    )
    assert answer.status_code == 403


async def test_logout_ends_this_token_only(client: httpx.AsyncClient, ada: Person) -> None:
    secret = (await _login(client, "ada")).json()["secret"]
    session = {"Authorization": f"Bearer {secret}"}
    assert (await client.post("/v1/auth/logout", headers=session)).status_code == 204
    assert (await client.get("/v1/me", headers=session)).json()["error"] == "token_invalid"
    assert (await client.get("/v1/me", headers=ada.headers)).status_code == 200


async def test_expired_token_is_refused(client: httpx.AsyncClient, app: FastAPI, ada: Person) -> None:
    async with app.state.database.sessions() as db:
        await db.execute(sa.update(tables.Token).values(expires_at=sa.text("now() - interval '1 second'")))
        await db.commit()
    answer = await client.get("/v1/me", headers=ada.headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "token_invalid")


async def test_token_with_right_id_and_wrong_secret_is_refused(
    client: httpx.AsyncClient, ada: Person
) -> None:
    forged = ada.secret[:-1] + ("A" if ada.secret[-1] != "A" else "B")
    answer = await client.get("/v1/me", headers={"Authorization": f"Bearer {forged}"})
    assert answer.json()["error"] == "token_invalid"


@pytest.mark.parametrize("header", ["Bearer", "Bearer x", "Basic YWRhOng=", "rgu_x", "Bearer \u00e9"])
async def test_rubbish_in_authorization_is_refused(client: httpx.AsyncClient, header: str) -> None:
    answer = await client.get("/v1/me", headers={"Authorization": header.encode()})
    assert answer.status_code == 401


async def test_api_token_made_listed_revoked(client: httpx.AsyncClient, ada: Person) -> None:
    made = await client.post("/v1/tokens", json={"name": "laptop", "scopes": ["read"]}, headers=ada.headers)
    assert made.status_code == 201
    token = made.json()["token"]
    headers = {"Authorization": f"Bearer {made.json()['secret']}"}

    listed = (await client.get("/v1/tokens", headers=headers)).json()["items"]
    assert {item["name"] for item in listed} == {"test", "laptop"}
    assert "secret" not in listed[0]
    refused = await client.post("/v1/tokens", json={"name": "more"}, headers=headers)
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")

    assert (await client.delete(f"/v1/tokens/{token['id']}", headers=ada.headers)).status_code == 204
    assert (await client.get("/v1/me", headers=headers)).status_code == 401


async def test_member_cannot_make_service_or_metrics_tokens(client: httpx.AsyncClient, ada: Person) -> None:
    for scope, status in (("act_as", 422), ("agent", 422), ("metrics", 403), ("surprise", 422)):
        answer = await client.post("/v1/tokens", json={"name": "x", "scopes": [scope]}, headers=ada.headers)
        assert answer.status_code == status, scope


async def test_token_of_somebody_else_is_not_there(
    client: httpx.AsyncClient, actors: Actors, ada: Person
) -> None:
    eve = await actors.user("eve")
    theirs = (await client.get("/v1/me", headers=ada.headers)).json()["token"]["id"]
    assert (await client.delete(f"/v1/tokens/{theirs}", headers=eve.headers)).status_code == 404
    assert (await client.get("/v1/me", headers=ada.headers)).status_code == 200


async def test_suspended_user_loses_tokens_at_once_and_keeps_them_lost(
    client: httpx.AsyncClient, admin: Person, ada: Person
) -> None:
    answer = await client.post("/v1/users/ada:suspend", headers=admin.headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "suspended")
    assert (await client.get("/v1/me", headers=ada.headers)).status_code == 401
    refused = await _login(client, "ada")
    assert (refused.status_code, refused.json()["error"]) == (403, "account_suspended")
    assert (await _login(client, "ada", "wrong")).json()["error"] == "invalid_credentials"

    await client.post(f"/v1/users/{ada.id}:resume", headers=admin.headers)
    assert (await client.get("/v1/me", headers=ada.headers)).status_code == 401
    assert (await _login(client, "ada")).status_code == 201


async def test_suspended_customer_stops_all_its_users(
    client: httpx.AsyncClient, actors: Actors, admin: Person
) -> None:
    bob = await actors.user("bob", customer="physics")
    answer = await client.post("/v1/customers/physics:suspend", headers=admin.headers)
    assert answer.json()["status"] == "suspended"
    assert (await client.get("/v1/me", headers=bob.headers)).status_code == 401
    assert (await _login(client, "bob")).json()["error"] == "account_suspended"


async def test_hub_acts_for_users_but_not_for_suspended_or_unknown_ones(
    client: httpx.AsyncClient, actors: Actors, admin: Person, ada: Person
) -> None:
    hub = {"Authorization": f"Bearer {await actors.hub()}"}
    me = (await client.get("/v1/me", headers={**hub, "X-RemoteGPU-On-Behalf-Of": "ada"})).json()
    assert (me["user"]["username"], me["token"]["kind"]) == ("ada", "service")
    assert (await client.get("/v1/me", headers=hub)).json()["user"] is None

    unknown = await client.get("/v1/me", headers={**hub, "X-RemoteGPU-On-Behalf-Of": "nobody"})
    assert unknown.status_code == 404
    await client.post("/v1/users/ada:suspend", headers=admin.headers)
    suspended = await client.get("/v1/me", headers={**hub, "X-RemoteGPU-On-Behalf-Of": "ada"})
    assert suspended.json()["error"] == "account_suspended"


async def test_user_cannot_act_for_others(client: httpx.AsyncClient, admin: Person, ada: Person) -> None:
    for person in (ada, admin):
        answer = await client.get("/v1/me", headers={**person.headers, "X-RemoteGPU-On-Behalf-Of": "ada"})
        assert answer.status_code == 403


async def test_password_change_ends_other_sessions_only(client: httpx.AsyncClient, ada: Person) -> None:
    other = {"Authorization": f"Bearer {(await _login(client, 'ada')).json()['secret']}"}
    wrong = await client.post(
        "/v1/me/password",
        json={"current_password": "wrong", "new_password": "another password"},
        headers=ada.headers,
    )
    assert wrong.json()["error"] == "invalid_credentials"
    changed = await client.post(
        "/v1/me/password",
        json={"current_password": PASSWORD, "new_password": "another password"},
        headers=ada.headers,
    )
    assert changed.status_code == 204
    assert (await client.get("/v1/me", headers=ada.headers)).status_code == 200
    assert (await client.get("/v1/me", headers=other)).status_code == 401
    assert (await _login(client, "ada")).status_code == 401
    assert (await _login(client, "ada", "another password")).status_code == 201


async def test_admin_makes_user_with_one_time_password_and_resets_it(
    client: httpx.AsyncClient, admin: Person
) -> None:
    made = await client.post("/v1/users", json={"username": "grace"}, headers=admin.headers)
    assert made.status_code == 201
    first = made.json()["one_time_password"]
    session = (await _login(client, "grace", first)).json()["secret"]

    reset = await client.post("/v1/users/grace:reset-password", headers=admin.headers)
    second = reset.json()["one_time_password"]
    assert second != first
    assert (await _login(client, "grace", first)).status_code == 401
    assert (await _login(client, "grace", second)).status_code == 201
    gone = await client.get("/v1/me", headers={"Authorization": f"Bearer {session}"})
    assert gone.status_code == 401


async def test_user_name_is_unique(client: httpx.AsyncClient, admin: Person, ada: Person) -> None:
    answer = await client.post("/v1/users", json={"username": "ada"}, headers=admin.headers)
    assert (answer.status_code, answer.json()["error"]) == (409, "name_taken")


async def test_owner_manages_the_own_customer_only(
    client: httpx.AsyncClient, actors: Actors, ada: Person
) -> None:
    owner = await actors.user("olga", role="owner", customer="physics")
    bob = await actors.user("bob", customer="physics")
    boss = await actors.user("boss", customer="physics", role="admin")

    listed = (await client.get("/v1/users", headers=owner.headers)).json()["items"]
    assert [item["username"] for item in listed] == ["bob", "boss", "olga"]
    assert (await client.get("/v1/users/ada", headers=owner.headers)).status_code == 404
    assert (await client.post("/v1/users/ada:suspend", headers=owner.headers)).status_code == 404
    assert (await client.post(f"/v1/users/{boss.id}:suspend", headers=owner.headers)).status_code == 403
    assert (await client.post(f"/v1/users/{bob.id}:suspend", headers=owner.headers)).status_code == 200

    made = await client.post("/v1/users", json={"username": "new"}, headers=owner.headers)
    assert made.json()["user"]["customer_name"] == "physics"
    higher = await client.post("/v1/users", json={"username": "high", "role": "admin"}, headers=owner.headers)
    assert higher.status_code == 403
    elsewhere = await client.post(
        "/v1/users", json={"username": "else", "customer": "default"}, headers=owner.headers
    )
    assert elsewhere.status_code == 404


async def test_member_sees_only_the_own_account(
    client: httpx.AsyncClient, actors: Actors, ada: Person
) -> None:
    await actors.user("eve")
    assert (await client.get("/v1/users/ada", headers=ada.headers)).status_code == 200
    assert (await client.get("/v1/users/eve", headers=ada.headers)).status_code == 404
    assert (await client.get("/v1/users", headers=ada.headers)).status_code == 403
    assert (await client.get("/v1/customers", headers=ada.headers)).status_code == 403
    assert (
        await client.patch("/v1/users/ada", json={"role": "admin"}, headers=ada.headers)
    ).status_code == 403


async def test_last_admin_cannot_be_suspended_or_demoted(
    client: httpx.AsyncClient, actors: Actors, admin: Person
) -> None:
    demoted = await client.patch("/v1/users/root", json={"role": "member"}, headers=admin.headers)
    assert demoted.json()["error"] == "state_conflict"
    second = await actors.admin("second")
    assert (await client.post("/v1/users/root:suspend", headers=second.headers)).status_code == 200
    last = await client.patch("/v1/users/second", json={"role": "member"}, headers=second.headers)
    assert last.json()["error"] == "state_conflict"


async def test_user_fields_changed_to_null_empty_and_left_out(
    client: httpx.AsyncClient, admin: Person, ada: Person
) -> None:
    await client.patch(
        "/v1/users/ada", json={"email": "ada@example.org", "display_name": "Ada"}, headers=admin.headers
    )
    cleared = await client.patch(
        "/v1/users/ada", json={"email": None, "display_name": ""}, headers=admin.headers
    )
    assert (cleared.json()["email"], cleared.json()["display_name"]) == (None, "")
    untouched = await client.patch("/v1/users/ada", json={}, headers=admin.headers)
    assert untouched.json()["role"] == "member"
    refused = await client.patch("/v1/users/ada", json={"role": None}, headers=admin.headers)
    assert refused.status_code == 422


async def test_password_never_appears_in_database_or_events(
    client: httpx.AsyncClient, app: FastAPI, admin: Person
) -> None:
    canary = "canary-password-4711"
    await client.post("/v1/users", json={"username": "grace", "password": canary}, headers=admin.headers)
    login = await _login(client, "grace", canary)
    secret = login.json()["secret"]
    async with app.state.database.sessions() as db:
        for table in tables.Base.metadata.tables.values():
            rows = (await db.execute(sa.select(table))).all()
            assert canary not in repr(rows)
            assert secret not in repr(rows)


async def test_use_of_a_token_is_written_outside_of_requests(
    client: httpx.AsyncClient, app: FastAPI, ada: Person
) -> None:
    await client.get("/v1/me", headers=ada.headers)
    before = (await client.get("/v1/me", headers=ada.headers)).json()["token"]["last_used_at"]
    await app.state.token_use.write()
    after = (await client.get("/v1/me", headers=ada.headers)).json()["token"]["last_used_at"]
    assert before is None
    assert after is not None


async def test_read_scope_may_look_and_not_touch(client: httpx.AsyncClient, actors: Actors) -> None:
    reader = await actors.user("reader", role="admin", scopes=(Scope.READ,))
    assert (await client.get("/v1/users", headers=reader.headers)).status_code == 200
    assert (await client.get("/v1/events", headers=reader.headers)).status_code == 200
    made = await client.post("/v1/customers", json={"name": "new"}, headers=reader.headers)
    assert (made.status_code, made.json()["error"]) == (403, "forbidden")
