"""``Idempotency-Key``: the same create asked twice has one effect and one answer.

The answer is stored in the transaction of its effect, so a server that dies between commit and answer gives
the stored answer when it is asked again. Use on a route: ``dependencies=[IDEMPOTENT]``, on a router made by
:func:`remotegpu_server.routing.api_router`, which stores the answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response

from remotegpu.errors import BadRequest, IdempotencyMismatch
from remotegpu_server.authz import Actor
from remotegpu_server.crypto import Vault
from remotegpu_server.db import tables
from remotegpu_server.deps import Caller, Db, VaultDep

HEADER = "Idempotency-Key"
RETENTION_S = 24 * 3600


class Replay(Exception):
    """Not an error: this request was answered before, and is answered the same again."""

    def __init__(self, *, status: int, body: bytes) -> None:
        super().__init__("replayed")
        self.status = status
        self.body = body


@dataclass(frozen=True)
class _Pending:
    principal: str
    key: str
    request_hash: bytes


async def _idempotent(
    request: Request,
    db: Db,
    caller: Caller,
    vault: VaultDep,
    key: Annotated[
        str | None,
        Header(
            alias=HEADER,
            max_length=128,
            pattern=r"^[\x21-\x7e]+$",
            description="Any string of up to 128 characters; repeated within 24 hours with the same body, "
            "the same answer comes again and nothing happens twice.",
        ),
    ] = None,
) -> None:
    if key is None:
        return
    pending = _Pending(
        principal=_principal(caller), key=key, request_hash=await _request_hash(request, caller)
    )
    # The second of two equal requests waits here until the first has committed or failed.
    await db.execute(
        select(func.pg_advisory_xact_lock(func.hashtextextended(f"{pending.principal} {key}", 71)))
    )
    found = await db.scalar(
        select(tables.IdempotencyKey).where(
            tables.IdempotencyKey.principal == pending.principal, tables.IdempotencyKey.key == key
        )
    )
    if found is None:
        request.state.idempotency = pending
        return
    if found.request_hash != pending.request_hash:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used for another request.", hint="Use a new key for a new request."
        )
    body = vault.open(found.body)
    if body is None:
        raise BadRequest("The answer to this Idempotency-Key can no longer be read.", hint="Use a new key.")
    raise Replay(status=found.status, body=body)


IDEMPOTENT = Depends(_idempotent, scope="function")
"""Put it into ``dependencies`` of every route that creates something, or adds to what is there."""


async def store_answer(request: Request, response: Response) -> None:
    """Keep the answer of a request that carried a key, in the transaction that made its effect."""
    pending: _Pending | None = getattr(request.state, "idempotency", None)
    if pending is None or not 200 <= response.status_code < 300:
        return
    db: AsyncSession = request.state.db
    vault: Vault = request.app.state.vault
    await db.execute(
        insert(tables.IdempotencyKey).values(
            principal=pending.principal,
            key=pending.key,
            request_hash=pending.request_hash,
            status=response.status_code,
            body=vault.seal(bytes(response.body)),
        )
    )


def _principal(actor: Actor) -> str:
    """A user's keys are shared by the user's tokens, so that a retry may come with a fresh one."""
    return actor.user_id or actor.token_id


async def _request_hash(request: Request, actor: Actor) -> bytes:
    found = hashlib.sha256()
    for part in (request.method, request.url.path, request.url.query, actor.environment_id or ""):
        found.update(part.encode() + b"\0")
    found.update(await request.body())
    return found.digest()
