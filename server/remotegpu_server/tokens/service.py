"""Tokens: made, looked up at every request, revoked at once."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Row, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import AccountSuspended, Forbidden, NotFound, TokenInvalid, Unauthorized
from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.tokens import secret as token_secret

_Found: TypeAlias = Row[*tuple[Any, ...]]


@dataclass(frozen=True)
class Minted:
    """A new token; the secret is known only here."""

    row: tables.Token
    secret: str


def new_secret(kind: TokenKind) -> str:
    """The secret of a token that has no row yet."""
    return token_secret.make_secret(kind, tables.new_id("tok"))


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
    secret: str | None = None,
) -> Minted:
    """Insert a token. Without ``expires_in_s`` it lives until it is revoked. ``secret``: one of
    :func:`new_secret`, where its text is needed before its row can be made.
    """
    secret = secret or new_secret(kind)
    named = token_secret.token_id_of(secret)
    assert named is not None, "it was made just now"
    _, token_id = named
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
    found = (await db.execute(_OF_TOKEN, {"token_id": token_id})).one_or_none()
    stored = found.secret_hash if found else bytes(32)
    matches = hmac.compare_digest(stored, token_secret.digest(secret))
    if found is None or not matches or found.kind != kind:
        raise TokenInvalid("The token is not valid.")
    if found.revoked or (found.expired and kind is not TokenKind.ENROLLMENT):
        raise TokenInvalid("The token has expired or was revoked.")
    if found.user_id is not None and (refusal := _suspension(found)):
        raise AccountSuspended(refusal)
    if on_behalf_of is not None:
        return await _acting_for(db, found, on_behalf_of)
    return _actor(found, found if found.user_id is not None else None)


# Statements of plain tables, made once: the first of them is in every request.
_token, _user, _customer = (one.__table__.c for one in (tables.Token, tables.User, tables.Customer))
_member, _workspace = tables.WorkspaceMember.__table__.c, tables.Workspace.__table__.c
_PERSON: tuple[ColumnElement[Any], ...] = (
    _user.id.label("user_id"),
    _user.username,
    _user.role,
    _user.customer_id,
    _user.password_change_required,
    _user.status.label("user_status"),
    _customer.name.label("customer_name"),
    _customer.status.label("customer_status"),
    select(func.jsonb_object_agg(_member.workspace_id, _member.role))
    .where(
        _workspace.id == _member.workspace_id,
        _member.user_id == _user.id,
        _member.status == "active",
        _workspace.status != "deleted",
    )
    .scalar_subquery()
    .label("workspaces"),
)
"""A person as an actor needs it, with the role in each workspace."""
_people = tables.User.__table__.join(tables.Customer.__table__, _customer.id == _user.customer_id)
_OF_TOKEN = (
    select(
        _token.id.label("token_id"),
        _token.kind,
        _token.name.label("token_name"),
        _token.scopes,
        _token.secret_hash,
        _token.host_id,
        _token.environment_id,
        _token.revoked_at.is_not(None).label("revoked"),
        (_token.expires_at <= func.now()).label("expired"),
        tables.Host.__table__.c.name.label("host_name"),
        *_PERSON,
    )
    .select_from(
        tables.Token.__table__.outerjoin(_people, _user.id == _token.user_id).outerjoin(
            tables.Host.__table__, tables.Host.__table__.c.id == _token.host_id
        )
    )
    .where(_token.id == bindparam("token_id"))
)
_OF_NAME = select(*_PERSON).select_from(_people).where(_user.username == bindparam("username"))
_OF_ID = select(*_PERSON).select_from(_people).where(_user.id == bindparam("user_id"))


def _suspension(person: _Found) -> str | None:
    """Why the user may not act, or ``None``."""
    if person.user_status != "active":
        what = "was deleted" if person.user_status == "deleted" else "is suspended"
        return f"The account {person.username} {what}."
    if person.customer_status != "active":
        return f"The customer {person.customer_name} is suspended."
    return None


async def require_active(db: AsyncSession, *user_ids: str) -> None:
    """Refuse what a suspended account would start. Locks users and customers against suspension until the
    transaction ends, so whoever suspends sees what was begun before. First in the lock order.

    Raises :class:`AccountSuspended`.
    """
    found = await db.execute(
        select(*_PERSON)
        .select_from(_people)
        .where(_user.id.in_(user_ids))
        .order_by(_user.id)
        .with_for_update(read=True, of=(tables.User.__table__, tables.Customer.__table__))
    )
    for person in found:
        if refusal := _suspension(person):
            raise AccountSuspended(refusal)


async def _acting_for(db: AsyncSession, token: _Found, username: str) -> Actor:
    if token.kind != TokenKind.SERVICE or Scope.ACT_AS not in token.scopes:
        raise Forbidden("Only a service token with the scope act_as may name another user.")
    person = (await db.execute(_OF_NAME, {"username": username})).one_or_none()
    if person is None:
        raise NotFound(f"There is no user {username[:64]!r}.")
    return replace(
        _actor(token, person),
        suspended=_suspension(person),
        service_name=f"service:{token.token_name or token.token_id}",
    )


async def owner(db: AsyncSession, *, user_id: str) -> Actor:
    """Somebody for whom a loop does what they asked for earlier. Whether the account is active is asked by
    :func:`require_active`.
    """
    person = (await db.execute(_OF_ID, {"user_id": user_id})).one()
    return Actor(
        kind=TokenKind.USER,
        token_id="",
        scopes=frozenset({Scope.ALL}),
        name=person.username,
        user_id=person.user_id,
        username=person.username,
        role=person.role,
        customer_id=person.customer_id,
        workspaces=person.workspaces or {},
    )


def _actor(token: _Found, person: _Found | None) -> Actor:
    if person is not None:
        name = person.username
    elif token.host_name is not None:
        name = f"agent:{token.host_name}"
    else:
        name = f"service:{token.token_name or token.token_id}"
    return Actor(
        kind=token.kind,
        token_id=token.token_id,
        scopes=frozenset(token.scopes),
        name=name,
        user_id=person.user_id if person else None,
        username=person.username if person else None,
        role=person.role if person else None,
        customer_id=person.customer_id if person else None,
        workspaces=person.workspaces or {} if person else {},
        host_id=token.host_id,
        environment_id=token.environment_id,
        must_change_password=(
            person is not None and person.password_change_required and token.kind != "workload"
        ),
    )
