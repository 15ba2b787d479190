"""Registering keys, and what every environment's authorised keys are."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Conflict, NameTaken, NotFound
from remotegpu.types.ssh_keys import SshKey, SshKeyCreate
from remotegpu.types.wire import Page
from remotegpu_server import authz, pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.ssh_keys import convert
from remotegpu_server.ssh_keys.parse import parse

MOST_KEYS = 50
"""Of one user: each is written into every environment of theirs."""
CHANGED = "ssh-keys"
"""Hint that the authorised keys of some environments may have changed."""


async def list_keys(db: AsyncSession, *, actor: Actor, limit: int, cursor: str | None) -> Page[SshKey]:
    """The caller's own, oldest first."""
    authz.require(actor, Action.SSH_KEY_READ)
    key = tables.SshKey
    rows, following = await pagination.page(
        db,
        select(key).where(key.user_id == actor.user_id),
        key=(key.created_at, key.id),
        limit=limit,
        cursor=cursor,
    )
    return Page[SshKey](items=[convert.to_wire(row) for row in rows], next_cursor=following)


async def get_key(db: AsyncSession, *, actor: Actor, key_id: str) -> SshKey:
    """One of the caller's own; anybody else's is 404, for admins too: nobody else has a use for it."""
    authz.require(actor, Action.SSH_KEY_READ)
    return convert.to_wire(await _own(db, actor=actor, key_id=key_id))


async def create_key(db: AsyncSession, *, actor: Actor, body: SshKeyCreate) -> SshKey:
    """Register a key: within one heartbeat it opens the caller's environments that run."""
    authz.require(actor, Action.SSH_KEY_WRITE)
    parsed = parse(body.public_key)
    key = tables.SshKey
    known = await db.scalar(select(func.count()).select_from(key).where(key.user_id == actor.user_id)) or 0
    if known >= MOST_KEYS:
        raise Conflict(f"You have {known} keys.", hint="Remove one that is not used any more.")
    try:
        async with db.begin_nested():
            row: tables.SshKey | None = await db.scalar(
                insert(key)
                .values(
                    id=tables.new_id("key"),
                    user_id=actor.user_id,
                    name=body.name,
                    key_type=parsed.key_type,
                    public_key=parsed.line,
                    fingerprint=parsed.fingerprint,
                )
                .returning(key)
            )
    except IntegrityError as error:
        raise NameTaken(
            f"You have registered the key {parsed.fingerprint} already.",
            hint="`remotegpu ssh-key list` shows it.",
        ) from error
    assert row is not None
    audit.note(db, resource_id=row.id, fingerprint=parsed.fingerprint)
    await _record(db, actor, row, "ssh_key.added", f"{actor.name} added the SSH key {row.name!r}.")
    return convert.to_wire(row)


async def delete_key(db: AsyncSession, *, actor: Actor, key_id: str) -> None:
    """Remove it: within one heartbeat it opens nothing any more. Sessions that are open stay open."""
    authz.require(actor, Action.SSH_KEY_WRITE)
    row = await _own(db, actor=actor, key_id=key_id)
    await db.execute(delete(tables.SshKey).where(tables.SshKey.id == row.id))
    audit.note(db, fingerprint=row.fingerprint)
    await _record(db, actor, row, "ssh_key.removed", f"{actor.name} removed the SSH key {row.name!r}.")


async def _own(db: AsyncSession, *, actor: Actor, key_id: str) -> tables.SshKey:
    key = tables.SshKey
    row: tables.SshKey | None = await db.scalar(
        select(key).where(key.id == key_id, key.user_id == actor.user_id)
    )
    if row is None:
        raise NotFound("There is no such SSH key.")
    return row


async def _record(db: AsyncSession, actor: Actor, row: tables.SshKey, kind: str, message: str) -> None:
    await events.record(
        db,
        kind=kind,
        subject_type="ssh_key",
        subject_id=row.id,
        actor=actor,
        message=message,
        data={"fingerprint": row.fingerprint},
        customer_id=actor.customer_id,
        user_id=actor.user_id,
    )
    notify(db, CHANGED)


def authorised() -> Select[str, str, str]:
    """(environment id, fingerprint, line) of every key that opens an environment that is wanted.

    The owner's, and in a team's workspace those of its active members that are more than viewers; nobody's
    who is suspended.
    """
    key, user, customer = tables.SshKey, tables.User, tables.Customer
    wanted, workspace, member = tables.Environment, tables.Workspace, tables.WorkspaceMember
    enters = (
        select(member.user_id)
        .join(workspace, workspace.id == member.workspace_id)
        .where(
            member.workspace_id == wanted.workspace_id,
            member.user_id == user.id,
            member.status == "active",
            member.role != "viewer",
            workspace.kind == "team",
            workspace.status == "active",
        )
        .exists()
    )
    return (
        select(wanted.id, key.fingerprint, key.public_key)
        .select_from(wanted)
        .join(user, (user.id == wanted.owner_id) | enters)
        .join(customer, customer.id == user.customer_id)
        .join(key, key.user_id == user.id)
        .where(
            user.status == "active",
            customer.status == "active",
            wanted.desired == "running",
            wanted.status.not_in(["pending", "stopped", "failed", "deleted"]),
        )
        .distinct()
    )


async def lines_of(db: AsyncSession, *, environment_ids: Sequence[str]) -> dict[str, list[str]]:
    """By environment, the lines of its ``authorized_keys`` in a fixed order."""
    found: dict[str, list[str]] = {}
    query = authorised().where(tables.Environment.id.in_(environment_ids))
    for environment_id, _, line in await db.execute(query):
        found.setdefault(environment_id, []).append(line)
    return {environment_id: sorted(lines) for environment_id, lines in found.items()}
