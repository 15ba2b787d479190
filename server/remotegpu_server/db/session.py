"""One request is one transaction, committed before the answer is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator

from psycopg import errors as pg_errors
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.requests import Request

from remotegpu_server.db.engine import Database
from remotegpu_server.fault_points import FaultPoints

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """The session of a request. Depend on it with ``scope="function"``: code after the yield then runs before
    the response is sent, so nobody holds a 2xx for something that was not committed.
    """
    database: Database = request.app.state.database
    async for db in _one_transaction(request, database.sessions):
        yield db


async def get_heartbeat_session(request: Request) -> AsyncIterator[AsyncSession]:
    """The same on the heartbeats' own pool."""
    database: Database = request.app.state.database
    async for db in _one_transaction(request, database.heartbeat_sessions):
        yield db


async def _one_transaction(
    request: Request, sessions: async_sessionmaker[AsyncSession]
) -> AsyncIterator[AsyncSession]:
    fault_points: FaultPoints = request.app.state.fault_points
    changes = request.method not in SAFE_METHODS
    async with sessions() as db:
        request.state.db = db
        yield db
        if changes:
            fault_points.reach("before_commit")
        await db.commit()
        if changes:
            fault_points.reach("after_commit")


def violated_constraint(error: IntegrityError) -> str | None:
    """Name of the constraint or unique index that refused a write, as written in ``tables.py``."""
    origin = error.orig
    return origin.diag.constraint_name if isinstance(origin, pg_errors.Error) else None
