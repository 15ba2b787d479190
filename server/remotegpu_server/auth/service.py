"""Signing in and out. Verifying a password takes a while, so it happens between transactions."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import AccountSuspended, Invalid, InvalidCredentials
from remotegpu.types.identity import Credentials, Identity, Login, Scope, TokenCreated, TokenKind, User
from remotegpu_server import observability
from remotegpu_server.audit import service as audit
from remotegpu_server.auth import limits, passwords
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.settings import Settings
from remotegpu_server.tokens import convert as tokens_convert
from remotegpu_server.tokens import service as tokens
from remotegpu_server.users import convert as users_convert
from remotegpu_server.users.queries import UserWithCustomer, user_by_username
from remotegpu_server.workspaces import members as memberships

SESSION_S = 12 * 3600


async def login(
    sessions: async_sessionmaker[AsyncSession],
    settings: Settings,
    body: Login,
    *,
    address: str | None,
) -> TokenCreated:
    """A session token for the right password. Raises ``InvalidCredentials``, ``AccountSuspended``,
    ``RateLimited``.
    """
    found = await _verified(sessions, settings, body, address=address)
    return await open_session(sessions, found, expires_in_s=body.expires_in_s)


async def open_session(
    sessions: async_sessionmaker[AsyncSession], found: UserWithCustomer, *, expires_in_s: float
) -> TokenCreated:
    """A session token of somebody who has proved who it is."""
    async with sessions() as db:
        minted = await tokens.mint(
            db,
            kind=TokenKind.USER,
            scopes=[Scope.ALL],
            name="session",
            user_id=found.user.id,
            expires_in_s=expires_in_s,
        )
        await db.commit()
    user = found.user
    audit.note_detached(
        actor=Actor(
            kind=minted.row.kind,
            token_id=minted.row.id,
            scopes=frozenset(minted.row.scopes),
            name=user.username,
            user_id=user.id,
            customer_id=user.customer_id,
        )
    )
    return TokenCreated(
        token=tokens_convert.to_wire(minted.row), secret=minted.secret, user=users_convert.to_wire(found)
    )


async def verify(
    sessions: async_sessionmaker[AsyncSession],
    settings: Settings,
    body: Credentials,
    *,
    address: str | None,
) -> User:
    """The user of a right password, for the hub's own sign-in page."""
    return users_convert.to_wire(await _verified(sessions, settings, body, address=address))


async def logout(db: AsyncSession, actor: Actor) -> None:
    """End the session of this token."""
    require(actor, Action.SESSION_END)
    await tokens.revoke(db, tables.Token.id == actor.token_id, tables.Token.kind == "user")


async def identity(db: AsyncSession, actor: Actor) -> Identity:
    """Who the caller is."""
    require(actor, Action.ME_READ)
    token = await db.get_one(tables.Token, actor.token_id)
    found = await user_by_username(db, actor.username) if actor.username else None
    return Identity(
        user=users_convert.to_wire(found) if found else None,
        workspaces=await memberships.of_user(db, user_id=actor.user_id) if actor.user_id else [],
        token=tokens_convert.to_wire(token),
        environment_id=actor.environment_id,
        host_id=actor.host_id,
    )


async def check_password(
    sessions: async_sessionmaker[AsyncSession],
    settings: Settings,
    *,
    username: str,
    password: str,
    address: str | None,
) -> UserWithCustomer | None:
    """The user whose password this is, or None. Counts failures; raises ``RateLimited``."""
    name = username.lower()
    async with sessions() as db:
        await limits.count_attempt(db, settings, username=name, address=address)
        found = await user_by_username(db, name)
        await db.commit()
    stored = found.user.password_hash if found else None
    if found is not None:
        audit.note_detached(account=found.user.username)
    if not await passwords.verify_password(stored, password):
        observability.LOGIN_FAILURES.labels("wrong_password").inc()
        return None
    async with sessions() as db:
        await limits.forgive(db, username=name, address=address)
        # It may have been suspended or changed while the hash was computed.
        current = await user_by_username(db, name)
        await db.commit()
    return current if current and current.user.password_hash == stored else None


async def _verified(
    sessions: async_sessionmaker[AsyncSession],
    settings: Settings,
    body: Credentials,
    *,
    address: str | None,
) -> UserWithCustomer:
    found = await check_password(
        sessions,
        settings,
        username=body.username,
        password=body.password.get_secret_value(),
        address=address,
    )
    if found is None:
        raise InvalidCredentials("User name or password is wrong.")
    # Only whoever knows the password is told that the account is suspended.
    if found.user.status != "active" or found.customer.status != "active":
        observability.LOGIN_FAILURES.labels("suspended").inc()
        raise AccountSuspended("The account is suspended.")
    return found


async def change_password(
    sessions: async_sessionmaker[AsyncSession],
    settings: Settings,
    actor: Actor,
    *,
    current: str,
    new: str,
    address: str | None,
) -> None:
    """Set a new password and end every other session of the user."""
    require(actor, Action.PASSWORD_CHANGE)
    found = await check_password(
        sessions, settings, username=actor.username or "", password=current, address=address
    )
    if found is None:
        raise InvalidCredentials("The current password is wrong.")
    if new == current:
        raise Invalid("new_password: must not be the present one.")
    new_hash = await passwords.hash_password(new)
    async with sessions() as db:
        user = await db.scalar(
            select(tables.User)
            .where(tables.User.id == found.user.id, tables.User.password_hash == found.user.password_hash)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
        if user is None:
            raise InvalidCredentials("The password was changed meanwhile.")
        user.password_hash = new_hash
        user.password_change_required = False
        ended = await tokens.revoke(
            db,
            tables.Token.user_id == user.id,
            tables.Token.kind == "user",
            tables.Token.id != actor.token_id,
        )
        await events.record(
            db,
            kind="user.password_changed",
            subject_type="user",
            subject_id=user.id,
            actor=actor,
            message=f"{actor.name} changed the password; {len(ended)} other tokens ended.",
            data={"tokens_revoked": len(ended)},
            customer_id=user.customer_id,
            user_id=user.id,
        )
        await db.commit()
