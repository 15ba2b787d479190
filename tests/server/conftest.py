"""``fleet`` makes hosts with hollow agents; after each test that uses it the invariants are checked.

``work`` is what a pass of a loop gets, for tests that call passes one by one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import httpx
import pytest_asyncio
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet

from remotegpu_server import leadership
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors


@pytest_asyncio.fixture
async def fleet(app: FastAPI, client: httpx.AsyncClient, actors: Actors) -> AsyncIterator[Fleet]:
    admin = await actors.admin()
    made = Fleet(client=client, admin=admin.headers)
    await made.image()
    yield made
    async with app.state.database.sessions() as db:
        await assert_invariants(db)


@pytest_asyncio.fixture
async def work(app: FastAPI) -> Work:
    candidate = leadership.Candidate("loops")
    async with app.state.database.sessions() as db:
        assert await candidate.acquire(db)
        # Nobody renews it here, and a test on a busy machine outlasts a lease.
        await db.execute(sa.text("UPDATE leadership SET expires_at = now() + interval '1 hour'"))
        await db.commit()
    return Work(
        database=app.state.database,
        settings=app.state.settings,
        vault=app.state.vault,
        candidate=candidate,
        leading_since=time.monotonic() - 3600,
    )
