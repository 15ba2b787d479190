"""Hosts: entries that an agent joins, and what admins do with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import InUse, NameTaken, NotFound
from remotegpu.types.hosts import EnrollmentToken, EnrollmentTokenCreate, Host, HostCreate, HostUpdate
from remotegpu.types.identity import Scope, TokenKind
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.gpus import service as gpus
from remotegpu_server.hosts import convert
from remotegpu_server.tokens import service as tokens


async def list_hosts(db: AsyncSession, *, actor: Actor, limit: int, cursor: str | None) -> Page[Host]:
    """By name."""
    authz.require(actor, Action.HOST_READ)
    found = select(tables.Host).order_by(tables.Host.name).limit(limit + 1)
    if cursor is not None:
        found = found.where(tables.Host.name > cursor)
    rows = (await db.scalars(found)).all()
    return Page[Host](
        items=await _to_wire(db, rows[:limit]),
        next_cursor=rows[limit - 1].name if len(rows) > limit else None,
    )


async def _to_wire(db: AsyncSession, rows: Sequence[tables.Host]) -> list[Host]:
    ids = [row.id for row in rows]
    free = {one.id: one for one in await capacity.inventory(db, host_ids=ids)}
    samples = await gpus.newest_samples(db, host_ids=ids)
    gpu = tables.Gpu
    marked = (
        select(gpu.host_id).where(gpu.host_id.in_(ids), gpu.simulated, gpu.health != "missing").distinct()
    )
    simulated = set((await db.scalars(marked)).all())
    return [
        convert.to_wire(
            row, inventory=free.get(row.id), sample=samples.get(row.id), simulated=row.id in simulated
        )
        for row in rows
    ]


async def get_host(db: AsyncSession, *, actor: Actor, host: str) -> Host:
    """By id or name."""
    authz.require(actor, Action.HOST_READ)
    (found,) = await _to_wire(db, [await _found(db, host)])
    return found


async def _found(db: AsyncSession, host: str, *, lock: bool = False) -> tables.Host:
    query = select(tables.Host).where((tables.Host.id == host) | (tables.Host.name == host))
    if lock:
        query = query.with_for_update(key_share=True)
    row: tables.Host | None = await db.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise NotFound("There is no such host.")
    return row


async def create_host(db: AsyncSession, *, actor: Actor, body: HostCreate) -> Host:
    """An entry that an agent joins with an enrolment token."""
    authz.require(actor, Action.HOST_WRITE)
    try:
        async with db.begin_nested():
            row = await db.scalar(
                insert(tables.Host)
                .values(id=tables.new_id("host"), name=body.name, labels=body.labels)
                .returning(tables.Host)
            )
    except IntegrityError as error:
        raise NameTaken(f"There is a host {body.name} already.") from error
    assert row is not None
    await _record(db, actor, row, "host.created", f"Host {row.name} was added.")
    (made,) = await _to_wire(db, [row])
    return made


async def update_host(db: AsyncSession, *, actor: Actor, host: str, body: HostUpdate) -> Host:
    """Change labels."""
    authz.require(actor, Action.HOST_WRITE)
    row = await _found(db, host, lock=True)
    if body.labels is not None:
        row = await _change(db, row, labels=body.labels)
        await _record(db, actor, row, "host.updated", f"Labels of host {row.name} were changed.")
    (changed,) = await _to_wire(db, [row])
    return changed


async def set_cordoned(db: AsyncSession, *, actor: Actor, host: str, cordoned: bool) -> Host:
    """Take no new work, or take it again. What runs goes on."""
    authz.require(actor, Action.HOST_WRITE)
    row = await _found(db, host, lock=True)
    if row.cordoned != cordoned:
        row = await _change(db, row, cordoned=cordoned)
        what = "cordoned" if cordoned else "uncordoned"
        await _record(db, actor, row, f"host.{what}", f"Host {row.name} was {what}.")
        notify(db, "queue")
    (changed,) = await _to_wire(db, [row])
    return changed


async def _change(db: AsyncSession, row: tables.Host, **values: Any) -> tables.Host:
    changed = await db.scalar(
        update(tables.Host)
        .where(tables.Host.id == row.id)
        .values(**values)
        .returning(tables.Host)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert changed is not None, "the row is locked"
    return changed


async def delete_host(db: AsyncSession, *, actor: Actor, host: str) -> None:
    """Forget a host that never held anything, with its credentials.

    A host with history stays, because its placements and homes refer to it: cordon it instead.
    """
    authz.require(actor, Action.HOST_WRITE)
    row = await _found(db, host, lock=True)
    held = tables.Placement
    live = await db.scalar(
        select(func.count()).select_from(held).where(held.host_id == row.id, held.released_at.is_(None))
    )
    if live:
        raise InUse(
            f"{live} environments hold something on {row.name}.",
            hint="Cordon the host and stop them first.",
            data={"environments": live},
        )
    try:
        async with db.begin_nested():
            await db.execute(delete(tables.Gpu).where(tables.Gpu.host_id == row.id))
            await db.execute(delete(tables.Host).where(tables.Host.id == row.id))
    except IntegrityError as error:
        raise InUse(
            f"Homes or past environments refer to {row.name}.", hint="Cordon the host instead of deleting it."
        ) from error
    await _record(db, actor, row, "host.deleted", f"Host {row.name} was deleted.")


async def create_enrollment_token(
    db: AsyncSession, *, actor: Actor, host: str, body: EnrollmentTokenCreate
) -> EnrollmentToken:
    """A single-use token for one agent. Older ones of the host are revoked."""
    authz.require(actor, Action.HOST_WRITE)
    row = await _found(db, host, lock=True)
    await tokens.revoke_of_host(db, row.id, kind=TokenKind.ENROLLMENT)
    minted = await tokens.mint(
        db,
        kind=TokenKind.ENROLLMENT,
        scopes=[Scope.AGENT],
        name=f"enrol {row.name}",
        host_id=row.id,
        expires_in_s=body.expires_in_s,
    )
    await _record(
        db, actor, row, "host.enrollment_token", f"An enrolment token for host {row.name} was made."
    )
    assert minted.row.expires_at is not None
    return EnrollmentToken(host_id=row.id, secret=minted.secret, expires_at=minted.row.expires_at)


async def _record(db: AsyncSession, actor: Actor, row: tables.Host, kind: str, message: str) -> None:
    await events.record(db, kind=kind, subject_type="host", subject_id=row.id, actor=actor, message=message)
