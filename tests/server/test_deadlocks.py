"""A request that PostgreSQL ends to resolve a deadlock is done again, as a whole, a few times (F34)."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet
from psycopg import errors as pg_errors
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from remotegpu_server.hosts.service import operate
from remotegpu_server.routing import ATTEMPTS

_LOCK = text("SELECT id FROM hosts WHERE name = :name FOR UPDATE")
_WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


async def _waiting(app: FastAPI) -> int:
    async with app.state.database.sessions() as db:
        return int(await db.scalar(_WAITING) or 0)


async def _until_one_waits(app: FastAPI) -> None:
    async with asyncio.timeout(5):
        while not await _waiting(app):  # noqa: ASYNC110  only the database knows
            await asyncio.sleep(0.01)


async def test_request_ended_by_a_deadlock_is_done_again_once_with_its_body(
    fleet: Fleet, app: FastAPI, client: httpx.AsyncClient
) -> None:
    """It holds h1 and wants h2; the other holds h2 and wants h1. Who waited first is ended."""
    for name in ("h1", "h2"):
        await fleet.host(name)
    ended: list[str] = []

    def note(context: sa.engine.ExceptionContext) -> None:
        if isinstance(context.original_exception, pg_errors.DeadlockDetected):
            ended.append("request")

    sa.event.listen(app.state.database.engine.sync_engine, "handle_error", note)
    body = {"hosts": ["h1", "h2"], "verb": "cordon", "reason": "work on the room"}
    headers = fleet.admin | {"X-Request-Id": "once"}
    async with app.state.database.sessions() as other:
        await other.execute(_LOCK, {"name": "h2"})
        asked = asyncio.create_task(client.post("/v1/hosts:batch", headers=headers, json=body))
        await _until_one_waits(app)
        await other.execute(_LOCK, {"name": "h1"})
        await other.rollback()
    answer = await asked
    assert ended == ["request"], "the deadlock happened, and it was the request that was ended"
    assert (answer.status_code, answer.json()) == (200, {"succeeded": ["h1", "h2"], "failed": {}})
    async with app.state.database.sessions() as db:
        reasons = (await db.scalars(text("SELECT operational_reason FROM hosts ORDER BY name"))).all()
        recorded = await db.execute(text("SELECT outcome FROM audit_records WHERE request_id = 'once'"))
        events = await db.scalar(text("SELECT count(*) FROM events WHERE kind = 'host.cordoned'"))
    assert list(reasons) == ["work on the room"] * 2
    assert list(recorded.scalars()) == ["done"], "one record of one effect"
    assert events == 2


@pytest.mark.parametrize(
    ("error", "attempts"), [(pg_errors.SerializationFailure, ATTEMPTS), (pg_errors.LockNotAvailable, 1)]
)
async def test_request_is_given_up_after_a_few_attempts_and_other_failures_at_once(
    fleet: Fleet,
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    attempts: int,
) -> None:
    asked = 0

    async def fails(*_args: object, **_named: object) -> None:
        nonlocal asked
        asked += 1
        raise OperationalError("SELECT", {}, error())

    monkeypatch.setattr(operate, "batch", fails)
    body = {"hosts": ["h1"], "verb": "cordon"}
    answer = await client.post("/v1/hosts:batch", headers=fleet.admin, json=body)
    assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
    assert asked == attempts
