"""The audit trail: what is in it, what is not, and that nobody can change it unseen."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.exc import IntegrityError

from remotegpu_server.audit import chain, loop
from remotegpu_server.audit import service as audit
from remotegpu_server.audit.budget import RefusalBudget
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.loops import Work
from remotegpu_server.testing import PASSWORD, Actors, Person


@pytest.fixture
async def admin(actors: Actors) -> Person:
    return await actors.admin()


async def _records(app: FastAPI, **where: Any) -> list[tables.AuditRecord]:
    row = tables.AuditRecord
    async with app.state.database.sessions() as db:
        query = sa.select(row).filter_by(**where).order_by(row.id)
        return list(await db.scalars(query))


async def _write(app: FastAPI, count: int, **values: Any) -> None:
    async with app.state.database.sessions() as db:
        for number in range(count):
            await audit.record(
                db,
                actor=SYSTEM,
                action="test.write",
                outcome="done",
                resource_type="test",
                resource_id=str(number),
                **values,
            )
        await db.commit()


async def test_write_leaves_one_record_with_old_and_new_values(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors, admin: Person
) -> None:
    await actors.user("ada")
    headers = admin.headers | {"X-Request-Id": "req-1"}
    await client.patch("/v1/users/ada", json={"display_name": "Ada"}, headers=headers)
    (found,) = await _records(app, request_id="req-1")
    assert (found.action, found.outcome, found.status) == ("users.update_user", "done", 200)
    assert (found.actor, found.resource_id, found.address) == ("root", "ada", "192.0.2.10")
    assert found.detail == {"old": {"display_name": "ada"}, "new": {"display_name": "Ada"}}


async def test_refused_and_failed_changes_are_recorded_as_such(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors
) -> None:
    ada = await actors.user("ada")
    cases = (
        ("POST", "/v1/hosts", {"name": "h1"}, 403, "forbidden"),
        ("POST", "/v1/environments/env-none:stop", None, 404, "not_found"),
        ("POST", "/v1/workspaces", {"nonsense": 1}, 422, "invalid"),
        ("DELETE", "/v1/workspaces/none", None, 404, "not_found"),
    )
    for number, (method, path, body, status, code) in enumerate(cases):
        headers = ada.headers | {"X-Request-Id": f"req-{number}"}
        assert (await client.request(method, path, json=body, headers=headers)).status_code == status
        (found,) = await _records(app, request_id=f"req-{number}")
        assert (found.outcome, found.status, found.actor) == ("refused", status, "ada")
        assert found.detail == {"error": code}


async def test_sign_ins_are_recorded_with_who_it_was_and_nothing_that_was_typed(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors
) -> None:
    await actors.user("ada")
    for username, password in (("ada", PASSWORD), ("ada", "canary-wrong"), ("canary-typed", "x")):
        await client.post("/v1/auth/login", json={"username": username, "password": password})
    done, wrong, unknown = await _records(app, action="identity.login")
    assert (done.outcome, done.actor, done.status) == ("done", "ada", 201)
    assert (wrong.outcome, wrong.actor, wrong.detail["account"]) == ("refused", "anonymous", "ada")
    assert unknown.detail == {"error": "invalid_credentials"}
    assert done.token_id is not None


async def test_hub_is_recorded_as_actor_and_the_user_as_acted_for(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors
) -> None:
    await actors.user("ada")
    hub = {"Authorization": f"Bearer {await actors.hub()}"}
    body = {"username": "ada", "password": PASSWORD}
    await client.post("/v1/auth/verify", json=body, headers=hub | {"X-Forwarded-For": "198.51.100.7"})
    (verified,) = await _records(app, action="identity.verify")
    assert (verified.actor, verified.address) == ("service:hub", "198.51.100.7")
    assert verified.detail["account"] == "ada"
    acting = hub | {"X-RemoteGPU-On-Behalf-Of": "ada"}
    await client.post("/v1/workspaces", json={"name": "Team"}, headers=acting)
    (made,) = await _records(app, action="workspaces.create_workspace")
    assert (made.actor, made.acted_for) == ("service:hub", "ada")


async def test_admin_read_of_personal_data_is_recorded_and_the_own_is_not(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors, admin: Person
) -> None:
    ada = await actors.user("ada")
    await client.get("/v1/users/ada", headers=ada.headers)
    assert await _records(app) == []
    await client.get("/v1/users/ada", headers=admin.headers)
    await client.get("/v1/users", headers=admin.headers)
    assert [one.action for one in await _records(app)] == ["users.get_user", "users.list_users"]
    await client.get("/v1/users/ada/tokens", headers=ada.headers)
    found = (await client.get("/v1/users/ada/tokens", headers=admin.headers)).json()["items"]
    assert len(found) == 1
    (last,) = (await _records(app))[2:]
    assert (last.action, last.resource_id) == ("identity.list_tokens_of_user", ada.id)


async def test_owner_ends_a_token_of_a_colleague_and_none_of_an_admin(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors
) -> None:
    boss, ada = await actors.user("boss", role="owner"), await actors.user("ada")
    chief = await actors.user("chief", role="admin")
    for person, status in ((ada, 204), (chief, 403)):
        path = f"/v1/users/{person.username}/tokens"
        (token,) = (await client.get(path, headers=boss.headers)).json()["items"]
        ended = await client.delete(f"/v1/tokens/{token['id']}", headers=boss.headers)
        assert ended.status_code == status, ended.text
        works = await client.get("/v1/me", headers=person.headers)
        assert works.status_code == (401 if status == 204 else 200)


async def test_flood_of_strangers_is_counted_and_not_written(client: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.refusals = RefusalBudget(anonymous_per_minute=5)
    for _ in range(40):
        await client.post("/v1/hosts", json={})
    assert len(await _records(app, actor="anonymous")) == 5
    app.state.refusals._buckets[None].tokens = 1.0
    await client.post("/v1/hosts", json={})
    last = (await _records(app, actor="anonymous"))[-1]
    assert last.detail["left_out_before"] == 35


async def test_detail_holds_no_secret_at_any_depth_and_no_long_text(app: FastAPI, actors: Actors) -> None:
    secret = (await actors.user("ada")).secret
    detail = {
        "new": [{"password": "canary"}, {"deep": {"api_secret": "canary", "text": f"with {secret} in it"}}],
        "long": "x" * 5000,
        "tokens_revoked": 3,
    }
    await _write(app, 1, detail=detail)
    (found,) = await _records(app)
    text = json.dumps(found.detail)
    assert "canary" not in text
    assert secret not in text
    assert len(found.detail["long"]) == 200
    assert found.detail["tokens_revoked"] == 3


async def test_trail_refuses_change_and_deletion(app: FastAPI, work: Work) -> None:
    await _write(app, 2)
    await loop.seal(work)
    for statement in (
        "UPDATE audit_records SET actor = 'somebody'",
        "UPDATE audit_records SET sequence = 9",
        "DELETE FROM audit_records",
        "TRUNCATE audit_records",
    ):
        async with app.state.database.sessions() as db:
            with pytest.raises(IntegrityError, match="append-only"):
                await db.execute(sa.text(statement))


async def test_chain_of_several_batches_verifies(
    app: FastAPI, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "BATCH", 10)
    await _write(app, 37, detail={"text": "naïve ☃", "number": 0.1, "nested": {"b": [1, None], "a": True}})
    await loop.seal(work)
    found = await chain.verify(app.state.database.sessions)
    assert (found.valid, found.records, found.unsealed, found.problem) == (True, 37, 0, None)


@pytest.mark.parametrize(
    ("tampering", "words"),
    [
        ("UPDATE audit_records SET actor = 'nobody' WHERE sequence = 3", "record 3"),
        ("UPDATE audit_records SET detail = '{}' WHERE sequence = 5", "record 5"),
        ("DELETE FROM audit_records WHERE sequence = 4", "record 4 is missing"),
        ("DELETE FROM audit_records WHERE sequence > 4", "before the record 6 that was kept"),
    ],
)
async def test_verification_finds_what_somebody_changed_with_the_database_owners_rights(
    app: FastAPI, work: Work, tampering: str, words: str
) -> None:
    await _write(app, 6, detail={"a": 1})
    await loop.seal(work)
    sessions = app.state.database.sessions
    kept = await chain.verify(sessions)
    async with sessions() as db:
        await db.execute(sa.text("SET LOCAL session_replication_role = replica"))
        await db.execute(sa.text(tampering))
        await db.commit()
    found = await chain.verify(sessions, anchor=(kept.records, kept.head))
    assert not found.valid
    assert words in (found.problem or "")


async def test_rewritten_chain_is_found_by_a_kept_hash(app: FastAPI, work: Work) -> None:
    await _write(app, 4)
    await loop.seal(work)
    sessions = app.state.database.sessions
    kept = await chain.verify(sessions)
    async with sessions() as db:
        await db.execute(sa.text("SET LOCAL session_replication_role = replica"))
        await db.execute(sa.text("UPDATE audit_records SET actor = 'nobody', sequence = NULL, hash = NULL"))
        await db.commit()
    await loop.seal(work)
    assert (await chain.verify(sessions)).valid
    assert not (await chain.verify(sessions, anchor=(kept.records, kept.head))).valid


async def test_sealing_waits_for_open_transactions_and_never_makes_them_wait(
    app: FastAPI, work: Work
) -> None:
    sessions = app.state.database.sessions
    async with sessions() as slow:
        await audit.record(slow, actor=SYSTEM, action="slow", outcome="done", resource_type="test")
        await _write(app, 3)
        async with asyncio.timeout(5):
            await loop.seal(work)
        assert [one.sequence for one in await _records(app)] == [None, None, None]
        await slow.commit()
    await loop.seal(work)
    sealed = await _records(app)
    assert [one.sequence for one in sealed] == [1, 2, 3, 4]
    assert sealed[0].action == "slow"


async def test_writers_and_sealer_at_once_make_one_gapless_chain(app: FastAPI, work: Work) -> None:
    async def seal_for_a_while() -> None:
        for _ in range(15):
            await loop.seal(work)
            await asyncio.sleep(0.01)

    await asyncio.gather(seal_for_a_while(), *[_write(app, 10) for _ in range(6)])
    await loop.seal(work)
    found = await chain.verify(app.state.database.sessions)
    assert (found.valid, found.records) == (True, 60)


async def test_search_filters_and_pages(client: httpx.AsyncClient, actors: Actors, admin: Person) -> None:
    ada = await actors.user("ada")
    for number in range(5):
        await client.post("/v1/workspaces", json={"name": f"w{number}"}, headers=ada.headers)
    await client.post("/v1/hosts", json={"name": "h"}, headers=ada.headers)
    path = "/v1/audit/records"

    async def names(**query: Any) -> list[str]:
        answer = await client.get(path, params=query, headers=admin.headers)
        return [one["action"] for one in answer.json()["items"]]

    assert await names(actor="ada", outcome="refused") == ["hosts.create_host"]
    assert len(await names(action="workspaces.create_workspace")) == 5
    assert len(await names(resource_type="workspaces", until="2020-01-01T00:00:00Z")) == 0
    first = (await client.get(path, params={"actor": "ada", "limit": 4}, headers=admin.headers)).json()
    rest = await client.get(
        path, params={"actor": "ada", "limit": 4, "cursor": first["next_cursor"]}, headers=admin.headers
    )
    ids = [one["id"] for one in first["items"] + rest.json()["items"]]
    assert len(ids) == 6
    assert ids == sorted(ids, reverse=True)


async def test_owner_sees_the_own_customer_and_member_nothing(
    client: httpx.AsyncClient, actors: Actors
) -> None:
    owner = await actors.user("olga", role="owner", customer="physics")
    inside = await actors.user("bob", customer="physics")
    outside = await actors.user("ada")
    for person in (inside, outside):
        await client.post("/v1/workspaces", json={"name": "w"}, headers=person.headers)
    seen = (await client.get("/v1/audit/records", headers=owner.headers)).json()["items"]
    assert {one["actor"] for one in seen} == {"bob"}
    assert (await client.get("/v1/audit/records", headers=inside.headers)).status_code == 403


async def test_export_escapes_formulas_and_streams_everything(
    client: httpx.AsyncClient, app: FastAPI, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remotegpu_server.audit.read._BATCH", 7)
    await _write(app, 30)
    async with app.state.database.sessions() as db:
        await audit.record(
            db,
            actor=SYSTEM,
            action="=cmd|' /C calc'!A0",
            outcome="done",
            resource_type="test",
            detail={"a": 'x,"y"'},
        )
        await db.commit()
    answer = await client.get("/v1/audit/records:export?format=csv", headers=admin.headers)
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == 32, "the export's own record is written before it starts"
    assert rows[30]["action"] == "'=cmd|' /C calc'!A0"
    assert json.loads(rows[30]["detail"]) == {"a": 'x,"y"'}
    lines = await client.get(
        "/v1/audit/records:export", params={"action": "test.write"}, headers=admin.headers
    )
    assert [json.loads(line)["resource_id"] for line in lines.text.splitlines()] == [
        str(number) for number in range(30)
    ]


async def test_no_table_holds_a_planted_secret(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors, admin: Person
) -> None:
    """I23 over the database: every place a secret is typed into, then the text of every table."""
    canary = "canary-6c1d0f5a"
    await actors.user("ada")
    await client.post("/v1/auth/login", json={"username": canary, "password": canary})
    await client.post("/v1/auth/login", json={"username": "ada", "password": f"{canary}-wrong"})
    body = {"username": "grace", "password": f"{canary}-new-one"}
    assert (await client.post("/v1/users", json=body, headers=admin.headers)).status_code == 201
    await client.post("/v1/users", json=body | {"role": canary}, headers=admin.headers)
    change = {"current_password": canary, "new_password": f"{canary}-another"}
    await client.post("/v1/me/password", json=change, headers=admin.headers)
    image = {"name": "base", "reference": "example.org/base:1"}
    await client.post("/v1/images", json=image, headers=admin.headers)
    environment = {"name": "w", "image": "base", "secret_env": {"API_KEY": canary}}
    acting = {"Authorization": f"Bearer {await actors.hub()}", "X-RemoteGPU-On-Behalf-Of": "ada"}
    made = await client.post("/v1/environments", json=environment, headers=acting)
    assert made.status_code == 201, made.text
    headers = {"Authorization": f"Bearer {canary}"}
    await client.post("/v1/hosts", json={"name": "h"}, headers=headers)
    names = await _tables_with(app, canary, admin.secret)
    assert names == {}


async def _tables_with(app: FastAPI, *words: str) -> dict[str, int]:
    found = {}
    async with app.state.database.sessions() as db:
        for table in tables.Base.metadata.sorted_tables:
            for word in words:
                query = sa.text(
                    f"SELECT count(*) FROM {table.name} t WHERE t::text LIKE :word"  # noqa: S608
                )
                if count := await db.scalar(query, {"word": f"%{word}%"}):
                    found[table.name] = count
    return found
