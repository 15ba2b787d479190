"""What holds for every route: shape of errors, limits of bodies, pages, idempotency, the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.routing import APIRoute

from remotegpu.errors import BY_CODE
from remotegpu_server import idempotency, observability
from remotegpu_server.app import create_app
from remotegpu_server.db import tables
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors, Person

JSON = {"Content-Type": "application/json"}
ANSWERED_WITHOUT_KEY = {"/v1/auth/login", "/v1/auth/oidc:finish", "/v1/agent/enroll", "/v1/agent/sessions"}
"""Creates without an account yet, with a code that is spent once, or idempotent by their own epoch."""


@pytest.fixture
async def admin(actors: Actors) -> Person:
    return await actors.admin()


def _assert_error(answer: httpx.Response, status: int, code: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["error"]) == (status, code), body
    assert set(body) == {"error", "detail", "hint", "request_id", "data"}
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert code in BY_CODE


def _routes(app: FastAPI) -> list[APIRoute]:
    return [route for route in app.routes if isinstance(route, APIRoute)]


async def test_malformed_json_is_a_bad_request(client: httpx.AsyncClient, admin: Person) -> None:
    for content in (b"{", b'{"name": }', b"\xff\xfe", b"nul"):
        answer = await client.post("/v1/customers", content=content, headers={**admin.headers, **JSON})
        _assert_error(answer, 400, "bad_request")


async def test_unknown_field_is_named_and_its_value_is_not_repeated(
    client: httpx.AsyncClient, admin: Person
) -> None:
    answer = await client.post(
        "/v1/customers", json={"name": "ok", "surprise": "hunter2"}, headers=admin.headers
    )
    _assert_error(answer, 422, "invalid")
    assert answer.json()["data"]["errors"][0]["field"] == "body.surprise"
    assert "hunter2" not in answer.text


async def test_too_short_password_is_not_repeated(client: httpx.AsyncClient, admin: Person) -> None:
    answer = await client.post(
        "/v1/users", json={"username": "grace", "password": "hunter2"}, headers=admin.headers
    )
    _assert_error(answer, 422, "invalid")
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "x" * 64, "-a", "a/b", "ü", "a\u0000"])
async def test_wrong_names_are_refused(client: httpx.AsyncClient, admin: Person, name: str) -> None:
    answer = await client.post("/v1/customers", json={"name": name}, headers=admin.headers)
    _assert_error(answer, 422, "invalid")


async def test_nul_in_free_text_does_not_reach_the_database(client: httpx.AsyncClient, admin: Person) -> None:
    answer = await client.post(
        "/v1/customers", json={"name": "ok", "display_name": "a\u0000b"}, headers=admin.headers
    )
    _assert_error(answer, 422, "invalid")


async def test_large_body_is_refused_with_and_without_a_length(
    client: httpx.AsyncClient, admin: Person
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 65536

    for content in (b"x" * (1024 * 1024 + 1), chunks()):
        answer = await client.post("/v1/customers", content=content, headers={**admin.headers, **JSON})
        _assert_error(answer, 413, "payload_too_large")


async def test_deeply_nested_json_is_refused(client: httpx.AsyncClient, admin: Person) -> None:
    answer = await client.post(
        "/v1/customers", content=b'{"name":' + b"[" * 10_000, headers={**admin.headers, **JSON}
    )
    _assert_error(answer, 400, "bad_request")


async def test_brackets_in_text_are_not_depth(client: httpx.AsyncClient, admin: Person) -> None:
    answer = await client.post(
        "/v1/customers", json={"name": "ok", "display_name": '["' * 100}, headers=admin.headers
    )
    assert answer.status_code == 201


async def test_unknown_path_and_method_have_the_same_shape(client: httpx.AsyncClient) -> None:
    _assert_error(await client.get("/v1/nothing"), 404, "not_found")
    _assert_error(await client.put("/v1/users"), 405, "bad_request")


async def test_request_id_of_the_client_is_kept_when_harmless(client: httpx.AsyncClient) -> None:
    kept = await client.get("/healthz", headers={"X-Request-Id": "mine-1"})
    assert kept.headers["X-Request-Id"] == "mine-1"
    replaced = await client.get("/healthz", headers={"X-Request-Id": "a b\tc"})
    assert replaced.headers["X-Request-Id"].startswith("req-")


async def test_every_route_refuses_a_request_without_a_token(app: FastAPI, client: httpx.AsyncClient) -> None:
    open_to_all = {"/healthz", "/readyz", "/v1/auth/login", "/v1/auth/methods", "/v1/auth/oidc:start"}
    for route in _routes(app):
        if route.path in open_to_all:
            continue
        path = route.path.format(**dict.fromkeys(route.param_convertors, "x"))
        for method in route.methods:
            answer = await client.request(
                method, path, json={} if method in ("POST", "PUT", "PATCH") else None
            )
            assert answer.status_code in (401, 422), f"{method} {route.path}: {answer.status_code}"
            valid_token_needed = await client.request(
                method, path, headers={"Authorization": "Bearer nonsense"}
            )
            assert valid_token_needed.status_code in (401, 422), f"{method} {route.path}"


async def test_unexpected_exception_is_a_server_error_with_its_request_id(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/v1/broken")
    async def broken() -> None:
        raise RuntimeError("a secret detail")

    answer = await client.get("/v1/broken", headers={"X-Request-Id": "find-me"})
    _assert_error(answer, 500, "server_error")
    assert "secret detail" not in answer.text
    assert "find-me" in caplog.text


async def test_failed_commit_never_answers_success(
    app: FastAPI, client: httpx.AsyncClient, admin: Person
) -> None:
    """A deferred constraint fails at the commit, after the handler has returned its answer."""
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("ALTER TABLE customers ADD CHECK (true)"))
        await db.execute(
            sa.text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$"
            )
        )
        await db.execute(
            sa.text(
                "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON customers"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )
        await db.commit()
    answer = await client.post("/v1/customers", json={"name": "physics"}, headers=admin.headers)
    assert answer.status_code == 409
    _assert_error(await client.get("/v1/customers/physics", headers=admin.headers), 404, "not_found")


async def test_database_gone_answers_unavailable_within_a_second(settings: Settings) -> None:
    from dataclasses import replace

    gone = create_app(
        replace(settings, database_url="postgresql+psycopg://u@127.0.0.1:1/none"), run_loops=False
    )
    transport = httpx.ASGITransport(app=gone, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://remotegpu.test") as client:
        async with asyncio.timeout(1):
            answer = await client.get(
                "/v1/me", headers={"Authorization": "Bearer rgu_" + "a" * 12 + "_" + "b" * 43}
            )
        _assert_error(answer, 503, "unavailable")
        assert answer.headers["Retry-After"] == "1"
        _assert_error(await client.get("/readyz"), 503, "unavailable")
        assert (await client.get("/healthz")).status_code == 200
    await gone.state.database.close()


async def test_pages_hold_every_row_once_while_rows_come_and_go(
    client: httpx.AsyncClient, actors: Actors, admin: Person
) -> None:
    for number in range(7):
        await actors.customer(f"c{number}")
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await client.get(f"/v1/customers?limit=3{cursor}", headers=admin.headers)).json()
        seen += [item["name"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
        await actors.customer("a-late-one")  # sorts before everything already read
    assert seen == [f"c{number}" for number in range(7)] + ["default"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "cursor=x", "cursor=W10", "cursor=bnVsbA"]
)
async def test_wrong_page_arguments_are_refused(client: httpx.AsyncClient, admin: Person, query: str) -> None:
    _assert_error(await client.get(f"/v1/users?{query}", headers=admin.headers), 422, "invalid")


async def test_same_key_same_body_same_answer_and_one_effect(
    app: FastAPI, client: httpx.AsyncClient, admin: Person
) -> None:
    headers = {**admin.headers, "Idempotency-Key": "k1"}
    answers = await asyncio.gather(
        *[client.post("/v1/users", json={"username": "grace"}, headers=headers) for _ in range(8)]
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    async with app.state.database.sessions() as db:
        count = await db.scalar(sa.select(sa.func.count()).where(tables.User.username == "grace"))
        stored = (await db.scalars(sa.select(tables.IdempotencyKey.body))).one()
    assert count == 1
    assert answers[0].json()["one_time_password"].encode() not in stored


async def test_same_key_other_body_is_a_mismatch(client: httpx.AsyncClient, admin: Person) -> None:
    headers = {**admin.headers, "Idempotency-Key": "k1"}
    await client.post("/v1/customers", json={"name": "one"}, headers=headers)
    other = await client.post("/v1/customers", json={"name": "two"}, headers=headers)
    _assert_error(other, 409, "idempotency_mismatch")


async def test_failed_request_does_not_use_up_its_key(client: httpx.AsyncClient, admin: Person) -> None:
    headers = {**admin.headers, "Idempotency-Key": "k1"}
    refused = await client.post("/v1/users", json={"username": "a", "customer": "none"}, headers=headers)
    assert refused.status_code == 404
    assert (await client.post("/v1/users", json={"username": "a"}, headers=headers)).status_code == 201


async def test_keys_of_two_users_do_not_meet(
    client: httpx.AsyncClient, actors: Actors, admin: Person
) -> None:
    second = await actors.admin("second")
    for person, name in ((admin, "one"), (second, "two")):
        headers = {**person.headers, "Idempotency-Key": "k1"}
        answer = await client.post("/v1/customers", json={"name": name}, headers=headers)
        assert (answer.status_code, answer.json()["name"]) == (201, name)


def test_every_create_honours_the_key(app: FastAPI) -> None:
    without = [
        route.path
        for route in _routes(app)
        if route.status_code == 201
        and idempotency.IDEMPOTENT not in route.dependencies
        and route.path not in ANSWERED_WITHOUT_KEY
    ]
    assert without == []


def test_document_has_summary_examples_and_errors_everywhere(app: FastAPI) -> None:
    document = app.openapi()
    problems: list[str] = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method.upper()} {path}"
            if not operation.get("summary") or not operation.get("description"):
                problems.append(f"{where}: no summary or description")
            for status in ("400", "401", "403", "404", "409", "413", "422", "429", "500", "503"):
                schema: dict[str, Any] = operation["responses"].get(status, {}).get("content", {})
                if schema.get("application/json", {}).get("schema", {}).get("$ref", "")[-9:] != "ErrorBody":
                    problems.append(f"{where}: {status} is not described")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name and "examples" not in document["components"]["schemas"][name]:
                problems.append(f"{where}: {name} has no example")
    assert problems == []


def test_paths_are_versioned_and_unique(app: FastAPI) -> None:
    found = [(method, route.path) for route in _routes(app) for method in route.methods]
    assert len(found) == len(set(found))
    assert {path for _, path in found if not path.startswith("/v1/")} == {"/healthz", "/readyz", "/metrics"}


async def test_metrics_are_for_loopback_or_their_scope(
    app: FastAPI, client: httpx.AsyncClient, actors: Actors, admin: Person
) -> None:
    ada = await actors.user("ada")
    assert (await client.get("/metrics")).status_code == 401
    assert (await client.get("/metrics", headers=ada.headers)).status_code == 403
    scraped = await client.get("/metrics", headers=admin.headers)
    assert 'remotegpu_http_request_seconds_count{method="GET",route="/metrics",status="401"}' in scraped.text
    transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://remotegpu.test") as local:
        assert (await local.get("/metrics")).status_code == 200
        assert (await local.get("/metrics", headers={"X-Forwarded-For": "192.0.2.1"})).status_code == 401


def test_redaction_removes_tokens_and_secret_fields() -> None:
    token = "rgu_abcdefghijkm_" + "A" * 43
    entry = observability.redact(
        None, "info", {"event": f"got {token}", "password": "x", "deep": {"token": "y", "list": [token]}}
    )
    assert token not in repr(entry)
    assert (entry["password"], entry["deep"]["token"]) == ("[redacted]", "[redacted]")
