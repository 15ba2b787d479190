"""API tokens: the caller's own, and those of people the caller looks after."""

from __future__ import annotations

from remotegpu.types.identity import Token, TokenCreate, TokenCreated
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router
from remotegpu_server.tokens import own

router = api_router("identity")


@router.get("/v1/tokens", summary="List the own tokens")
async def list_tokens(db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Page[Token]:
    """Sessions and API tokens that still work, oldest first; never their secrets."""
    return await own.list_tokens(db, caller, limit=limit, cursor=cursor)


@router.get("/v1/users/{user}/tokens", summary="List a user's tokens")
async def list_tokens_of_user(
    user: str, db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None
) -> Page[Token]:
    """The same of a user, by id or name; `DELETE /v1/tokens/{token_id}` ends one."""
    return await own.list_tokens_of(db, caller, user, limit=limit, cursor=cursor)


@router.post("/v1/tokens", status_code=201, summary="Make an API token", dependencies=[IDEMPOTENT])
async def create_token(body: TokenCreate, db: Db, caller: Caller) -> TokenCreated:
    """Its secret is shown this once."""
    return await own.create_token(db, caller, body)


@router.delete("/v1/tokens/{token_id}", status_code=204, summary="Revoke a token")
async def revoke_token(token_id: str, db: Db, caller: Caller) -> None:
    """It stops working at once."""
    await own.revoke_token(db, caller, token_id)
