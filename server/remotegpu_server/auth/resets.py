"""Forgotten passwords: a secret that works once and for half an hour, by mail or from an admin."""

from __future__ import annotations

import hmac
import secrets
from datetime import timedelta

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import PasswordResetInvalid
from remotegpu.types.identity import PasswordReset, PasswordResetLink
from remotegpu_server.audit import service as audit
from remotegpu_server.auth import limits, passwords
from remotegpu_server.authz import SYSTEM, Action, Actor
from remotegpu_server.crypto import Vault
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.settings import Settings
from remotegpu_server.tokens import secret as token_secret
from remotegpu_server.tokens import service as tokens
from remotegpu_server.users import service as users
from remotegpu_server.users.queries import users_with_customers

LIFETIME_S = 30 * 60
MAIL = "password-mail"
"""Hint for the loop that sends mail."""
_PREFIX = "rgp"


async def request(
    sessions: async_sessionmaker[AsyncSession],
    settings: Settings,
    vault: Vault,
    *,
    reference: str,
    address: str | None,
) -> None:
    """Queue a mail if this is somebody's name or address, and say nothing about it. Counts against the
    limits of sign-ins; raises ``RateLimited``.
    """
    name = reference.lower()
    async with sessions() as db:
        await limits.count_attempt(db, settings, username=f"reset {name}", address=address)
        await db.commit()
    if settings.smtp_url is None:
        return
    async with sessions() as db:
        user = await _reachable(db, name)
        if user is not None:
            await _make(db, user, vault=vault)
            notify(db, MAIL)
        await db.commit()


async def make_link(
    db: AsyncSession, actor: Actor, settings: Settings, *, reference: str
) -> PasswordResetLink:
    """For somebody who gets no mail: the admin hands it over. The password until now keeps working."""
    found = await users.find(db, actor, Action.USER_WRITE, reference, lock=True)
    users.refuse_deleted(found.user)
    secret, row = await _make(db, found.user, vault=None)
    audit.note(db, resource_id=found.user.id)
    message = f"{actor.name} made a link for a new password of {found.user.username}."
    await users.record(db, actor, found.user, "user.password_reset_link", message)
    return PasswordResetLink(secret=secret, url=link(settings, secret), expires_at=row.expires_at)


async def finish(
    sessions: async_sessionmaker[AsyncSession],
    settings: Settings,
    body: PasswordReset,
    *,
    address: str | None,
) -> None:
    """Set the new password and end every session. Raises ``PasswordResetInvalid`` for a secret that is
    unknown, used or too old, all with the same words.
    """
    secret = body.secret.get_secret_value()
    reset_id = _id_of(secret)
    async with sessions() as db:
        await limits.count_attempt(db, settings, username=f"reset {reset_id}", address=address)
        row = await _live(db, reset_id)
        await db.commit()
    if row is None or not hmac.compare_digest(row.secret_hash, token_secret.digest(secret)):
        raise _invalid()
    new_hash = await passwords.hash_password(body.new_password.get_secret_value())
    async with sessions() as db:
        await _spend(db, row, new_hash)
        await limits.forgive(db, username=f"reset {reset_id}", address=address)
        await db.commit()


def link(settings: Settings, secret: str) -> str | None:
    """The page with the secret behind ``#``, which no browser sends and no log sees."""
    return f"{settings.password_reset_url}#{secret}" if settings.password_reset_url else None


async def _reachable(db: AsyncSession, name: str) -> tables.User | None:
    user = tables.User
    found = (
        await db.execute(
            users_with_customers().where(
                or_(user.username == name, func.lower(user.email) == name),
                user.email.is_not(None),
                user.password_hash != "",
                user.status == "active",
                tables.Customer.status == "active",
            )
        )
    ).first()
    return found[0] if found else None


async def _make(
    db: AsyncSession, user: tables.User, *, vault: Vault | None
) -> tuple[str, tables.PasswordReset]:
    reset_id = tables.new_id("rst")
    secret = f"{_PREFIX}_{reset_id.removeprefix('rst-')}_{secrets.token_urlsafe(32)}"
    row = await db.scalar(
        insert(tables.PasswordReset)
        .values(
            id=reset_id,
            user_id=user.id,
            secret_hash=token_secret.digest(secret),
            expires_at=func.now() + timedelta(seconds=LIFETIME_S),
            mail=vault.seal(secret.encode()) if vault else None,
        )
        .returning(tables.PasswordReset)
    )
    assert row is not None
    return secret, row


async def _live(db: AsyncSession, reset_id: str) -> tables.PasswordReset | None:
    row = tables.PasswordReset
    found: tables.PasswordReset | None = await db.scalar(
        select(row).where(row.id == reset_id, row.used_at.is_(None), row.expires_at > func.now())
    )
    return found


async def _spend(db: AsyncSession, row: tables.PasswordReset, new_hash: str) -> None:
    """Once, whoever else comes with the same secret; every other link of the user ends, too."""
    reset, user = tables.PasswordReset, tables.User
    found = await db.scalar(
        select(user)
        .where(user.id == row.user_id, user.status == "active")
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    spent = await db.scalar(
        update(reset)
        .where(reset.id == row.id, reset.used_at.is_(None), reset.expires_at > func.now())
        .values(used_at=func.now(), mail=None)
        .returning(reset.id)
    )
    if found is None or spent is None:
        raise _invalid()
    await db.execute(
        update(reset)
        .where(reset.user_id == found.id, reset.used_at.is_(None))
        .values(used_at=func.now(), mail=None)
    )
    found.password_hash = new_hash
    found.password_change_required = False
    ended = await tokens.revoke(db, tables.Token.user_id == found.id, tables.Token.kind == "user")
    audit.note_detached(account=found.username, tokens_revoked=len(ended))
    message = f"{found.username} set a new password with a link; {len(ended)} tokens ended."
    await users.record(db, SYSTEM, found, "user.password_reset", message)


def _id_of(secret: str) -> str:
    parts = secret.split("_", 2)
    known = len(parts) == 3 and parts[0] == _PREFIX
    return f"rst-{parts[1][:12]}" if known else "rst-"


def _invalid() -> PasswordResetInvalid:
    return PasswordResetInvalid("This link is not valid, was used, or is too old.")
