"""Tokens: made, looked up at every request, revoked at once."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from remotegpu.errors import AccountSuspended, Forbidden, NotFound, TokenInvalid, Unauthorized
from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.tokens import secret as token_secret


@dataclass(frozen=True)
class Minted:
    """A new token; the secret is known only here."""

    row: tables.Token
    secret: str


async def mint(
    db: AsyncSession,
    *,
    kind: TokenKind,
    scopes: Iterable[Scope],
    name: str = "",
    user_id: str | None = None,
    host_id: str | None = None,
    environment_id: str | None = None,
    attempt_id: str | None = None,
    expires_in_s: float | None = None,
) -> Minted:
    """Insert a token. Without ``expires_in_s`` it lives until it is revoked."""
    token_id = tables.new_id("tok")
    secret = token_secret.make_secret(kind, token_id)
    expires_at = None if expires_in_s is None else func.now() + timedelta(seconds=expires_in_s)
    row = await db.scalars(
        insert(tables.Token)
        .values(
            id=token_id,
            secret_hash=token_secret.digest(secret),
            kind=str(kind),
            name=name,
            scopes=[str(scope) for scope in scopes],
            user_id=user_id,
            host_id=host_id,
            environment_id=environment_id,
            attempt_id=attempt_id,
            expires_at=expires_at,
        )
        .returning(tables.Token)
    )
    return Minted(row=row.one(), secret=secret)


async def revoke(db: AsyncSession, *where: ColumnElement[bool]) -> list[str]:
    """Revoke the live tokens that match, at once; answers their ids."""
    revoked = await db.scalars(
        update(tables.Token)
        .where(tables.Token.revoked_at.is_(None), *where)
        .values(revoked_at=func.now())
        .returning(tables.Token.id)
        .execution_options(synchronize_session=False)
    )
    return list(revoked)


async def revoke_of_environment(db: AsyncSession, environment_id: str) -> None:
    """A workload's token dies with its generation."""
    await revoke(db, tables.Token.environment_id == environment_id, tables.Token.kind == "workload")


async def revoke_of_attempt(db: AsyncSession, attempt_id: str) -> None:
    """A workload's token dies with its attempt."""
    await revoke(db, tables.Token.attempt_id == attempt_id)


async def revoke_of_host(db: AsyncSession, host_id: str, *, kind: TokenKind | None = None) -> None:
    """End what a host's agent may do; ``kind`` narrows it to credentials or enrolment tokens."""
    where: list[ColumnElement[bool]] = [tables.Token.host_id == host_id]
    if kind is not None:
        where.append(tables.Token.kind == str(kind))
    await revoke(db, *where)


async def spend_enrollment(db: AsyncSession, token_id: str) -> bool:
    """Use an enrolment token up; False when somebody else did, or it is too old."""
    spent = await db.scalar(
        update(tables.Token)
        .where(
            tables.Token.id == token_id,
            tables.Token.used_at.is_(None),
            tables.Token.revoked_at.is_(None),
            tables.Token.expires_at > func.now(),
        )
        .values(used_at=func.now())
        .returning(tables.Token.id)
        .execution_options(synchronize_session=False)
    )
    return spent is not None


async def authenticate(db: AsyncSession, secret: str | None, *, on_behalf_of: str | None = None) -> Actor:
    """The actor a secret stands for. Raises ``Unauthorized``, ``TokenInvalid``, ``AccountSuspended``; for an
    ``on_behalf_of`` that the token may not use, ``Forbidden``. Acting for a suspended user yields an actor
    that may only look after what still runs (``Actor.suspended``).

    A spent or expired enrolment token still authenticates, so that the enrolment can say ``410`` for it.
    """
    if not secret:
        raise Unauthorized("This request needs a token.")
    named = token_secret.token_id_of(secret)
    if named is None:
        raise TokenInvalid("The token is not valid.")
    kind, token_id = named
    found = (
        await db.execute(
            select(
                tables.Token,
                tables.User,
                tables.Customer,
                tables.Host.name,
                (tables.Token.expires_at <= func.now()).label("expired"),
                _workspaces(tables.Token.user_id),
            )
            .outerjoin(tables.User, tables.User.id == tables.Token.user_id)
            .outerjoin(tables.Customer, tables.Customer.id == tables.User.customer_id)
            .outerjoin(tables.Host, tables.Host.id == tables.Token.host_id)
            .where(tables.Token.id == token_id)
            .execution_options(populate_existing=True)
        )
    ).one_or_none()
    stored = found[0].secret_hash if found else bytes(32)
    matches = hmac.compare_digest(stored, token_secret.digest(secret))
    if found is None or not matches or found[0].kind != kind:
        raise TokenInvalid("The token is not valid.")
    token, user, customer, host_name, expired, workspaces = found
    if token.revoked_at is not None or (expired and kind is not TokenKind.ENROLLMENT):
        raise TokenInvalid("The token has expired or was revoked.")
    if user is not None and (refusal := _suspension(user, customer)):
        raise AccountSuspended(refusal)
    if on_behalf_of is not None:
        return await _acting_for(db, token, on_behalf_of)
    return _actor(token, user, host_name, workspaces)


def _workspaces(user_id: ColumnElement[str] | InstrumentedAttribute[Any]) -> ScalarSelect[Any]:
    """The workspaces of a user with the role in each, as one JSON object or NULL."""
    member, workspace = tables.WorkspaceMember, tables.Workspace
    return (
        select(func.jsonb_object_agg(member.workspace_id, member.role))
        .join(workspace, workspace.id == member.workspace_id)
        .where(member.user_id == user_id, member.status == "active", workspace.status != "deleted")
        .scalar_subquery()
    )


def _suspension(user: tables.User, customer: tables.Customer) -> str | None:
    """Why the user may not act, or ``None``."""
    if user.status != "active":
        what = "was deleted" if user.status == "deleted" else "is suspended"
        return f"The account {user.username} {what}."
    if customer.status != "active":
        return f"The customer {customer.name} is suspended."
    return None


async def require_active(db: AsyncSession, *user_ids: str) -> None:
    """Refuse what a suspended account would start. Locks users and customers against suspension until the
    transaction ends, so whoever suspends sees what was begun before. First in the lock order.

    Raises :class:`AccountSuspended`.
    """
    user, customer = tables.User, tables.Customer
    found = await db.execute(
        select(user, customer)
        .join(customer, customer.id == user.customer_id)
        .where(user.id.in_(user_ids))
        .order_by(user.id)
        .with_for_update(read=True, of=(user, customer))
        .execution_options(populate_existing=True)
    )
    for row in found:
        if refusal := _suspension(*row):
            raise AccountSuspended(refusal)


async def _acting_for(db: AsyncSession, token: tables.Token, username: str) -> Actor:
    if token.kind != TokenKind.SERVICE or Scope.ACT_AS not in token.scopes:
        raise Forbidden("Only a service token with the scope act_as may name another user.")
    found = (
        await db.execute(
            select(tables.User, tables.Customer, _workspaces(tables.User.id))
            .join(tables.Customer, tables.Customer.id == tables.User.customer_id)
            .where(tables.User.username == username)
        )
    ).one_or_none()
    if found is None:
        raise NotFound(f"There is no user {username[:64]!r}.")
    user, customer, workspaces = found
    return replace(
        _actor(token, user, None, workspaces),
        suspended=_suspension(user, customer),
        service_name=f"service:{token.name or token.id}",
    )


async def owner(db: AsyncSession, *, user_id: str) -> Actor:
    """Somebody for whom a loop does what they asked for earlier. Whether the account is active is asked by
    :func:`require_active`.
    """
    query = select(tables.User, _workspaces(tables.User.id)).where(tables.User.id == user_id)
    user, workspaces = (await db.execute(query)).one()
    return Actor(
        kind=TokenKind.USER,
        token_id="",
        scopes=frozenset({Scope.ALL}),
        name=user.username,
        user_id=user.id,
        username=user.username,
        role=user.role,
        customer_id=user.customer_id,
        workspaces=workspaces or {},
    )


def _actor(
    token: tables.Token, user: tables.User | None, host_name: str | None, workspaces: dict[str, str] | None
) -> Actor:
    if user is not None:
        name = user.username
    elif host_name is not None:
        name = f"agent:{host_name}"
    else:
        name = f"service:{token.name or token.id}"
    return Actor(
        kind=token.kind,
        token_id=token.id,
        scopes=frozenset(token.scopes),
        name=name,
        user_id=user.id if user else None,
        username=user.username if user else None,
        role=user.role if user else None,
        customer_id=user.customer_id if user else None,
        workspaces=workspaces or {},
        host_id=token.host_id,
        environment_id=token.environment_id,
        must_change_password=user is not None and user.password_change_required and token.kind != "workload",
    )
