"""Every cell of the matrix is asked for real, in a transaction that is rolled back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
import sqlalchemy as sa
from cryptography.fernet import Fernet
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.requests import Request

from remotegpu_server.app import ROUTERS, create_app
from remotegpu_server.audit.budget import RefusalBudget
from remotegpu_server.db import session, tables
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.openapi import EXAMPLES
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors

from . import table
from .actors import ACTORS, World, build
from .table import ROUTES, Row

_CELL_OF = {401: "1", 403: "3", 404: "4"}
_POLICIES = sorted(
    name for name in vars(table) if name.isupper() and name[0] != "_" and name not in ("ACTORS", "ROUTES")
)


def _routes() -> Iterator[tuple[str, APIRoute]]:
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            for method in sorted(route.methods):
                yield f"{method} {route.path}", route


SERVED = dict(_routes())


@pytest_asyncio.fixture(scope="module")
async def app(cluster: EmbeddedPostgres, template: str) -> AsyncIterator[FastAPI]:
    """One for the whole matrix: every request is rolled back, so no cell changes what the next one meets."""
    cluster.clone_database(template, "authorization_matrix")
    made = create_app(
        Settings(database_url=cluster.url("authorization_matrix"), secret_key=Fernet.generate_key().decode()),
        run_loops=False,
    )
    made.state.refusals = RefusalBudget(anonymous_per_minute=10**6, actor_per_minute=10**6)
    async with made.router.lifespan_context(made):
        yield made
    cluster.drop_database("authorization_matrix")


@pytest_asyncio.fixture(scope="module")
async def world(app: FastAPI) -> AsyncIterator[World]:
    made = await build(app, Actors(app.state.database))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session, "_one_transaction", _rolled_back)
        yield made


async def _rolled_back(
    request: Request, sessions: async_sessionmaker[AsyncSession]
) -> AsyncIterator[AsyncSession]:
    async with sessions() as db:
        request.state.db = db
        yield db
        _written[request.state.request_id] = await _records(db, request.state.request_id)
        await db.rollback()


_written: dict[str, int] = {}
"""Audit records by request id, of transactions that were rolled back."""


async def _records(db: AsyncSession, request_id: str) -> int:
    row = tables.AuditRecord
    return await db.scalar(sa.select(sa.func.count()).where(row.request_id == request_id)) or 0


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    missing = sorted(set(SERVED) - set(ROUTES))
    gone = sorted(set(ROUTES) - set(SERVED))
    assert not missing, (
        "These routes have no row in the authorization matrix. Add to ROUTES in"
        " tests/server/authorization/table.py, for each, one line that says who may call it:\n"
        + "\n".join(f'    "{name}": Row(POLICY),' for name in missing)
        + f"\nPOLICY is one of {', '.join(_POLICIES)}."
        " Where single actors differ: Row(POLICY, {actor: (cell, reason)}). The id of a new path parameter"
        " goes into `ids` of actors.build; a body that must name existing things: Row(..., body={...})."
        " See CONTRIBUTING.md."
    )
    assert not gone, f"These rows have no route any more, remove them from ROUTES in table.py: {gone}"


def test_every_difference_has_a_reason() -> None:
    for name, row in ROUTES.items():
        assert set(row.expected()) == set(ACTORS), name
        for actor, (cell, reason) in row.differs.items():
            assert len(reason) > 10, (name, actor)
            assert cell in "+134", (name, actor)


@pytest.mark.parametrize("name", sorted(set(ROUTES) & set(SERVED)))
async def test_route_answers_every_actor_as_the_table_says(
    name: str, world: World, client: httpx.AsyncClient, app: FastAPI
) -> None:
    row, found, said = ROUTES[name], {}, {}
    for actor in ACTORS:
        await _forget_failed_sign_ins(app)
        answer = await _ask(name, row, world, client, world.headers[actor])
        assert answer.status_code < 500 or answer.status_code == 503, (actor, answer.text)
        await _assert_recorded(app, name, answer)
        found[actor] = _CELL_OF.get(answer.status_code, "+")
        said[actor] = f"{answer.status_code} {answer.text[:160]}"
    expected = row.expected()
    wrong = {actor: (expected[actor], said[actor]) for actor in ACTORS if found[actor] != expected[actor]}
    assert not wrong, f"{name}: " + "; ".join(
        f"{actor} should get {cell}, got {text}" for actor, (cell, text) in wrong.items()
    )


async def _assert_recorded(app: FastAPI, name: str, answer: httpx.Response) -> None:
    """I24: every state-changing request leaves exactly one audit record, allowed or refused."""
    if name.startswith("GET ") or getattr(SERVED[name], "routine", False):
        return
    request_id = answer.headers["X-Request-Id"]
    async with app.state.database.sessions() as db:
        found = _written.pop(request_id, 0) + await _records(db, request_id)
    assert found == 1, f"{name}: {answer.status_code} left {found} audit records"


async def _forget_failed_sign_ins(app: FastAPI) -> None:
    """Sign-ins commit on their own, and would be told to wait after some."""
    async with app.state.database.sessions() as db:
        await db.execute(sa.delete(tables.LoginFailure))
        await db.commit()


async def _ask(
    name: str, row: Row, world: World, client: httpx.AsyncClient, headers: dict[str, str]
) -> httpx.Response:
    method, path = name.split(" ", 1)

    def value(match: re.Match[str]) -> str:
        parameter = match.group(1)
        return world.ids[f"{path} {parameter}" if f"{path} {parameter}" in world.ids else parameter]

    return await client.request(
        method,
        re.sub(r"{(\w+)}", value, path),
        headers=headers,
        params=dict(row.query),
        json=row.body if row.body is not None else _example(SERVED[name]),
    )


def _example(route: APIRoute) -> object:
    body = route.body_field
    if body is None:
        return None
    model = getattr(body.field_info.annotation, "__name__", "")
    return EXAMPLES.get(model)
