"""What a user does with the own tokens, and admins and owners with those of their people."""

from __future__ import annotations

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, Invalid, NotFound
from remotegpu.types.identity import Scope, Token, TokenCreate, TokenCreated, TokenKind
from remotegpu.types.wire import Page
from remotegpu_server import pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.tokens.convert import to_wire
from remotegpu_server.tokens.service import mint, revoke
from remotegpu_server.users import service as users
from remotegpu_server.users.convert import to_wire as user_to_wire
from remotegpu_server.users.queries import user_by_username

_GRANTABLE = frozenset({Scope.ALL, Scope.READ})


async def list_tokens(db: AsyncSession, actor: Actor, *, limit: int, cursor: str | None) -> Page[Token]:
    """Live tokens of the caller, oldest first."""
    require(actor, Action.TOKEN_READ)
    return await _live(db, user_id=actor.user_id, limit=limit, cursor=cursor)


async def list_tokens_of(
    db: AsyncSession, actor: Actor, reference: str, *, limit: int, cursor: str | None
) -> Page[Token]:
    """The same of the user of this id or name. A look at somebody else's is on record."""
    found = await users.find(db, actor, Action.TOKEN_READ_OF, reference)
    page = await _live(db, user_id=found.user.id, limit=limit, cursor=cursor)
    if found.user.id != actor.user_id:
        audit.note(db, read="tokens", resource_id=found.user.id, count=len(page.items))
    return page


async def _live(db: AsyncSession, *, user_id: str | None, limit: int, cursor: str | None) -> Page[Token]:
    query = select(tables.Token).where(
        tables.Token.user_id == user_id,
        tables.Token.kind == "user",
        tables.Token.revoked_at.is_(None),
        or_(tables.Token.expires_at.is_(None), tables.Token.expires_at > func.now()),
    )
    rows, following = await pagination.page(
        db, query, key=(tables.Token.created_at, tables.Token.id), limit=limit, cursor=cursor
    )
    return Page[Token](items=[to_wire(row) for row in rows], next_cursor=following)


async def create_token(db: AsyncSession, actor: Actor, body: TokenCreate) -> TokenCreated:
    """A new API token of the caller, with the scopes ``all``, ``read``, and for admins ``metrics``."""
    require(actor, Action.TOKEN_CREATE)
    wanted = set(body.scopes)
    if Scope.METRICS in wanted and not actor.is_admin:
        raise Forbidden("Only platform admins may make tokens with the scope metrics.")
    if wrong := wanted - _GRANTABLE - {Scope.METRICS}:
        raise Invalid(
            f"scopes: {', '.join(sorted(wrong))} cannot be given to a user's token.",
            hint="Use all, read or metrics.",
        )
    found = await user_by_username(db, actor.username or "")
    if found is None:
        raise NotFound("There is no such user.")
    minted = await mint(
        db,
        kind=TokenKind.USER,
        scopes=sorted(wanted),
        name=body.name,
        user_id=actor.user_id,
        expires_in_s=body.expires_in_s,
    )
    await _record(db, actor, minted.row.id, "token.created", f"{actor.name} made the token {body.name!r}.")
    return TokenCreated(token=to_wire(minted.row), secret=minted.secret, user=user_to_wire(found))


async def revoke_token(db: AsyncSession, actor: Actor, token_id: str) -> None:
    """End one of the caller's tokens, or of people the caller looks after. Ending it twice is fine."""
    row = await db.get(tables.Token, token_id)
    if row is None or row.kind != "user":
        raise NotFound("There is no such token.")
    owner = await db.get_one(tables.User, row.user_id)
    require(actor, Action.TOKEN_REVOKE, user_id=row.user_id, customer_id=owner.customer_id, noun="token")
    if owner.role == "admin" and not actor.is_admin:
        raise Forbidden("Only platform admins may end a platform admin's token.")
    audit.note(db, user=owner.username, name=row.name)
    if await revoke(db, tables.Token.id == token_id):
        await _record(
            db,
            actor,
            token_id,
            "token.revoked",
            f"{actor.name} revoked the token {row.name!r}.",
            user_id=owner.id,
            customer_id=owner.customer_id,
        )


async def _record(
    db: AsyncSession,
    actor: Actor,
    token_id: str,
    kind: str,
    message: str,
    *,
    user_id: str | None = None,
    customer_id: str | None = None,
) -> None:
    await events.record(
        db,
        kind=kind,
        subject_type="token",
        subject_id=token_id,
        actor=actor,
        message=message,
        user_id=user_id or actor.user_id,
        customer_id=customer_id or actor.customer_id,
    )
