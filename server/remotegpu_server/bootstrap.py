"""The first start: schema, default customer, admin account, the hub's token. Repeating it changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server.auth import passwords
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.db.engine import Database
from remotegpu_server.events import service as events
from remotegpu_server.images import seed as images_seed
from remotegpu_server.tokens import service as tokens
from remotegpu_server.workspaces import service as workspaces

CUSTOMER = "default"
ADMIN = "admin"
HUB = "hub"


@dataclass(frozen=True)
class Created:
    """What this start made; None for what was there."""

    admin_password: str | None
    hub_token: str | None


async def initialise(
    database: Database, *, admin_password_file: Path | None = None, hub_token_file: Path | None = None
) -> Created:
    """Make what is missing. A new secret is written to its file (mode 0600) before it counts, so that none
    can be lost between the two; the files are written only then.

    The hub's token is made again when its file was asked for and is gone; the old one is revoked.
    """
    async with database.sessions() as db:
        # Two servers that start at once must not make two admins or two tokens.
        await db.execute(text("SELECT pg_advisory_xact_lock(7310446022)"))
        password = await _admin(db)
        hub_token = await _hub_token(db, hub_token_file)
        if password is not None and admin_password_file is not None:
            write_secret(admin_password_file, password)
        if hub_token is not None and hub_token_file is not None:
            write_secret(hub_token_file, hub_token)
        await images_seed.seed(db)
        await db.commit()
    return Created(admin_password=password, hub_token=hub_token)


async def make_token(
    database: Database, *, kind: TokenKind, name: str, scopes: list[Scope], username: str | None
) -> str:
    """The secret of a new user or service token, for ``remotegpu-server create-token``."""
    async with database.sessions() as db:
        user_id = None
        if username is not None:
            user_id = await db.scalar(select(tables.User.id).where(tables.User.username == username))
            if user_id is None:
                raise ValueError(f"there is no user {username!r}")
        minted = await tokens.mint(db, kind=kind, scopes=scopes, name=name, user_id=user_id)
        await events.record(
            db,
            kind="token.created",
            subject_type="token",
            subject_id=minted.row.id,
            actor=SYSTEM,
            message=f"The {kind} token {name!r} was made on the server's machine.",
            user_id=user_id,
        )
        await db.commit()
    return minted.secret


async def _admin(db: AsyncSession) -> str | None:
    await db.execute(
        insert(tables.Customer)
        .values(id=tables.new_id("cus"), name=CUSTOMER, display_name="Default")
        .on_conflict_do_nothing(index_elements=[tables.Customer.name])
    )
    if await db.scalar(select(func.count()).select_from(tables.User)):
        return None
    password = passwords.make_one_time_password()
    customer_id = await db.scalar(select(tables.Customer.id).where(tables.Customer.name == CUSTOMER))
    user_id = tables.new_id("usr")
    await db.execute(
        insert(tables.User).values(
            id=user_id,
            username=ADMIN,
            display_name="Admin",
            role="admin",
            customer_id=customer_id,
            password_hash=await passwords.hash_password(password),
        )
    )
    assert customer_id is not None
    await workspaces.make_personal(db, user_id=user_id, customer_id=customer_id, username=ADMIN)
    await events.record(
        db,
        kind="user.created",
        subject_type="user",
        subject_id=user_id,
        actor=SYSTEM,
        message="The first admin account was made.",
    )
    return password


async def _hub_token(db: AsyncSession, file: Path | None) -> str | None:
    if file is None:
        return None
    hub = (tables.Token.kind == "service", tables.Token.name == HUB)
    live = await db.scalar(select(func.count()).where(*hub, tables.Token.revoked_at.is_(None)))
    if live and file.exists():  # noqa: ASYNC240  once, before anything is served
        return None
    await tokens.revoke(db, *hub)
    minted = await tokens.mint(db, kind=TokenKind.SERVICE, scopes=[Scope.ACT_AS, Scope.METRICS], name=HUB)
    return minted.secret


def write_secret(path: Path, secret: str) -> None:
    """Replace the file in one step; only its owner may read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
