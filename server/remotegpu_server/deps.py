"""What handlers ask for: the transaction, the caller, and what the app holds.

    @router.get("/{image}")
    async def get_image(image: str, db: Db, caller: Caller) -> Image: ...

A handler that waits (long poll, stream) takes ``Sessions`` and ``DetachedCaller`` instead, because it must
not hold a connection while it waits.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.requests import Request

from remotegpu.errors import Unauthorized
from remotegpu_server.authz import Actor
from remotegpu_server.blobs import Blobs
from remotegpu_server.crypto import Vault
from remotegpu_server.db.engine import Database
from remotegpu_server.db.notify import Signals
from remotegpu_server.db.session import get_heartbeat_session, get_session
from remotegpu_server.settings import Settings
from remotegpu_server.tokens import service as tokens

ON_BEHALF_OF = "X-RemoteGPU-On-Behalf-Of"

Db = Annotated[AsyncSession, Depends(get_session, scope="function")]
"""The request's transaction: committed before the answer is sent, rolled back on any error."""

HeartbeatDb = Annotated[AsyncSession, Depends(get_heartbeat_session, scope="function")]
"""The same from the heartbeats' own small pool."""


def bearer(request: Request) -> str | None:
    """The secret of the Authorization header."""
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else None


async def identify(request: Request, db: AsyncSession) -> Actor:
    """The caller of a request; raises ``Unauthorized`` and its kin."""
    if "Authorization" in request.headers and bearer(request) is None:
        raise Unauthorized("The Authorization header must be: Bearer <token>.")
    actor = await tokens.authenticate(db, bearer(request), on_behalf_of=request.headers.get(ON_BEHALF_OF))
    request.state.actor = actor
    request.app.state.token_use.seen(actor.token_id)
    return actor


async def _caller(request: Request, db: Db) -> Actor:
    return await identify(request, db)


async def _heartbeat_caller(request: Request, db: HeartbeatDb) -> Actor:
    return await identify(request, db)


async def _detached_caller(request: Request) -> Actor:
    database: Database = request.app.state.database
    async with database.sessions() as db:
        return await identify(request, db)


# Coroutines although nothing in them waits: plain functions would each be sent to a thread.
async def _sessions(request: Request) -> async_sessionmaker[AsyncSession]:
    database: Database = request.app.state.database
    return database.sessions


async def _signals(request: Request) -> Signals:
    database: Database = request.app.state.database
    return database.signals


async def _settings(request: Request) -> Settings:
    found: Settings = request.app.state.settings
    return found


async def _blobs(request: Request) -> Blobs:
    found: Blobs = request.app.state.blobs
    return found


async def _vault(request: Request) -> Vault:
    found: Vault = request.app.state.vault
    return found


Caller = Annotated[Actor, Depends(_caller, scope="function")]
HeartbeatCaller = Annotated[Actor, Depends(_heartbeat_caller, scope="function")]
DetachedCaller = Annotated[Actor, Depends(_detached_caller)]
Sessions = Annotated[async_sessionmaker[AsyncSession], Depends(_sessions)]
SignalsDep = Annotated[Signals, Depends(_signals)]
SettingsDep = Annotated[Settings, Depends(_settings)]
BlobsDep = Annotated[Blobs, Depends(_blobs)]
VaultDep = Annotated[Vault, Depends(_vault)]

Limit = Annotated[int, Query(ge=1, le=200, description="Most items on this page.")]
"""Page size; write ``limit: Limit = 50``."""
Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")]
"""Where the page starts; write ``cursor: Cursor = None``."""
