"""Connections to PostgreSQL: one pool for requests and loops, a small one that only heartbeats use.

With its own pool a heartbeat is answered even while every other connection waits for a lock, so a busy server
never makes its hosts look dead.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import Any

from psycopg import conninfo
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from remotegpu_server.db import samples as host_samples
from remotegpu_server.db.notify import Signals, take_hints
from remotegpu_server.db.samples import Samples

STATEMENT_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 5
IDLE_IN_TRANSACTION_TIMEOUT_S = 15
POOL_TIMEOUT_S = 15.0
"""A burst of requests waits its turn; its losers get their own answer instead of "the database is silent"."""


@dataclass(frozen=True)
class Database:
    """Engines and session factories of one process. ``sessions()`` is an ``async with`` block that rolls back
    unless ``commit`` was awaited.
    """

    url: URL
    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    heartbeat_sessions: async_sessionmaker[AsyncSession]
    heartbeat_engine: AsyncEngine
    signals: Signals
    samples: Samples

    async def close(self) -> None:
        """Give back every connection."""
        await self.signals.stop()
        await self.samples.stop()
        await self.engine.dispose()
        await self.heartbeat_engine.dispose()


def connect(database_url: str, *, pool_size: int = 20, heartbeat_pool_size: int = 4) -> Database:
    """Engines for a URL ``postgresql+psycopg://…``. Opens nothing yet."""
    url = make_url(database_url)
    if url.drivername not in ("postgresql+psycopg", "postgresql"):
        raise ValueError("the database URL must start with postgresql+psycopg://")
    url = url.set(drivername="postgresql+psycopg")
    signals = Signals(libpq_conninfo(url))
    engine = _engine(url, pool_size=pool_size, overflow=0)
    heartbeat_engine = _engine(url, pool_size=heartbeat_pool_size, overflow=0)
    # Not of the pool of requests: some of them hold a connection while they wait for samples to be written.
    samples = Samples(heartbeat_engine)
    return Database(
        url=url,
        engine=engine,
        sessions=_sessions(engine, signals, samples),
        heartbeat_engine=heartbeat_engine,
        heartbeat_sessions=_sessions(heartbeat_engine, signals, samples),
        signals=signals,
        samples=samples,
    )


def libpq_conninfo(url: URL) -> str:
    """The same connection as libpq writes it."""
    parts: dict[str, object] = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
    }
    for key, value in url.query.items():
        parts[key] = value if isinstance(value, str) else ",".join(value)
    return conninfo.make_conninfo(**{key: str(value) for key, value in parts.items() if value is not None})


def _engine(url: URL, *, pool_size: int, overflow: int) -> AsyncEngine:
    given = url.query.get("options", "")
    options = " ".join(
        [
            given if isinstance(given, str) else " ".join(given),
            "-c timezone=UTC",
            f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
            f"-c lock_timeout={LOCK_TIMEOUT_S}s",
            f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_S}s",
        ]
    ).strip()
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=overflow,
        pool_timeout=POOL_TIMEOUT_S,
        pool_recycle=1800,
        connect_args={
            "options": options,
            "connect_timeout": 2,
            "application_name": "remotegpu-server",
            # A connection whose other side vanished without a word is noticed while it is idle.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15000,
        },
    )
    event.listen(engine.sync_engine, "checkout", _refuse_ended)
    return engine


def _refuse_ended(connection: Any, _record: object, _proxy: object) -> None:
    """Instead of a ping before each use, which is a round trip: PostgreSQL says on the socket that it ends a
    session, and nothing else is ever on an idle one. The pool then opens new connections.
    """
    ended = select.poll()
    ended.register(connection.driver_connection.pgconn.socket, select.POLLIN)
    if ended.poll(0):
        raise InvalidatePoolError("PostgreSQL has ended this connection")


def _sessions(engine: AsyncEngine, signals: Signals, samples: Samples) -> async_sessionmaker[AsyncSession]:
    class HintingSession(Session):
        """Sends the hints of :func:`remotegpu_server.db.notify.notify` after its commit."""

    # Both fire for savepoints too; hints belong to the whole transaction.
    def send(session: Session) -> None:
        if not session.in_nested_transaction():
            signals.publish(take_hints(session.info))

    def forget(session: Session) -> None:
        if not session.in_nested_transaction():
            take_hints(session.info)

    event.listen(HintingSession, "after_commit", send)
    event.listen(HintingSession, "after_rollback", forget)
    return async_sessionmaker(
        engine,
        expire_on_commit=False,
        sync_session_class=HintingSession,
        info=host_samples.info(samples),
    )
