"""Hosts: entries that an agent joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import IPvAnyAddress
from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import InUse, NameTaken
from remotegpu.types.hosts import (
    Connection,
    EnrollmentToken,
    EnrollmentTokenCreate,
    Host,
    HostCreate,
    HostHealth,
    HostUpdate,
    Operational,
)
from remotegpu.types.identity import Scope, TokenKind
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import samples, tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.hosts import convert, queries
from remotegpu_server.tokens import service as tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which hosts are wanted; ``None`` and nothing: all of them."""

    operational: Operational | None = None
    connection: Connection | None = None
    health: HostHealth | None = None
    labels: Sequence[str] = ()
    """``key=value``, or ``key`` for any value; all must fit."""
    gpu_model: str | None = None
    """A part of a model name, upper or lower case."""


async def list_hosts(
    db: AsyncSession, *, actor: Actor, filters: Filters, limit: int, cursor: str | None
) -> Page[Host]:
    """By name."""
    authz.require(actor, Action.HOST_READ)
    found = select(tables.Host).where(*_wanted(filters)).order_by(tables.Host.name).limit(limit + 1)
    if cursor is not None:
        found = found.where(tables.Host.name > cursor)
    rows = (await db.scalars(found)).all()
    return Page[Host](
        items=await to_wire(db, rows[:limit]),
        next_cursor=rows[limit - 1].name if len(rows) > limit else None,
    )


def _wanted(filters: Filters) -> list[ColumnElement[bool]]:
    row, gpu = tables.Host, tables.Gpu
    found: list[ColumnElement[bool]] = []
    for column, value in (
        (row.operational, filters.operational),
        (row.connection, filters.connection),
        (row.health, filters.health),
    ):
        if value is not None:
            found.append(column == str(value))
    for label in filters.labels:
        key, equals, wanted = label.partition("=")
        found.append(row.labels.contains({key: wanted}) if equals else row.labels.has_key(key))
    if filters.gpu_model is not None:
        model = gpu.model.icontains(filters.gpu_model, autoescape=True)
        found.append(select(gpu.id).where(gpu.host_id == row.id, gpu.health != "missing", model).exists())
    return found


async def to_wire(db: AsyncSession, rows: Sequence[tables.Host]) -> list[Host]:
    """Hosts with what is free on them and their newest measurements, in a constant number of queries."""
    ids = [row.id for row in rows]
    free = {one.id: one for one in await capacity.inventory(db, host_ids=ids)}
    measured = await samples.newest(db, host_ids=ids)
    gpu = tables.Gpu
    marked = (
        select(gpu.host_id).where(gpu.host_id.in_(ids), gpu.simulated, gpu.health != "missing").distinct()
    )
    simulated = set((await db.scalars(marked)).all())
    return [
        convert.to_wire(
            row, inventory=free.get(row.id), sample=measured.get(row.id), simulated=row.id in simulated
        )
        for row in rows
    ]


async def get_host(db: AsyncSession, *, actor: Actor, host: str) -> Host:
    """By id or name."""
    authz.require(actor, Action.HOST_READ)
    (found,) = await to_wire(db, [await queries.found(db, host)])
    return found


async def create_host(db: AsyncSession, *, actor: Actor, body: HostCreate) -> Host:
    """An entry that an agent joins with an enrolment token."""
    authz.require(actor, Action.HOST_WRITE)
    row = await make(db, actor=actor, body=body)
    audit.note(db, resource_id=row.id, new=body.model_dump())
    (made,) = await to_wire(db, [row])
    return made


async def make(db: AsyncSession, *, actor: Actor, body: HostCreate) -> tables.Host:
    """The row of a new host, with its event. Raises :class:`NameTaken` for a name or an address in use."""
    with_address = {"hostname": body.hostname, "ip_address": _ip(body.ip_address)}
    try:
        async with db.begin_nested():
            row: tables.Host | None = await db.scalar(
                insert(tables.Host)
                .values(id=tables.new_id("host"), name=body.name, labels=body.labels, **with_address)
                .returning(tables.Host)
            )
    except IntegrityError as error:
        raise _taken(error, name=body.name, **with_address) from error
    assert row is not None
    await _record(db, actor, row, "host.created", f"Host {row.name} was added.")
    return row


def _ip(address: IPvAnyAddress | None) -> str | None:
    return None if address is None else str(address)


def _taken(error: IntegrityError, **values: str | None) -> NameTaken:
    """Which of the unique columns it was: their constraints are named after them."""
    for column, value in values.items():
        if f"uq_hosts_{column}" in str(error.orig):
            return NameTaken(f"There is a host with {column} {value} already.", data={"field": column})
    raise error


async def update_host(db: AsyncSession, *, actor: Actor, host: str, body: HostUpdate) -> Host:
    """Change what is given. Raises :class:`NameTaken` for an address in use."""
    authz.require(actor, Action.HOST_WRITE)
    row = await queries.found(db, host, lock=True)
    wanted = {"labels": body.labels, "hostname": body.hostname, "ip_address": _ip(body.ip_address)}
    changes = {column: value for column, value in wanted.items() if value not in (None, getattr(row, column))}
    if changes:
        old = {column: getattr(row, column) for column in changes}
        try:
            async with db.begin_nested():
                row = await queries.change(db, row, **changes)
        except IntegrityError as error:
            raise _taken(error, hostname=body.hostname, ip_address=_ip(body.ip_address)) from error
        audit.note(db, old=old, new=changes)
        what = " and ".join(column.replace("_", " ") for column in changes)
        await _record(db, actor, row, "host.updated", f"Of host {row.name}, {what} changed.")
        notify(db, "queue")
    (changed,) = await to_wire(db, [row])
    return changed


async def delete_host(db: AsyncSession, *, actor: Actor, host: str) -> None:
    """Forget a host that never held anything, with its credentials.

    A host with history stays, because its placements and homes refer to it: retire it instead.
    """
    authz.require(actor, Action.HOST_WRITE)
    row = await queries.found(db, host, lock=True)
    live = await queries.count_live(db, host_id=row.id)
    if live:
        raise InUse(
            f"{live} environments and tasks hold something on {row.name}.",
            hint="Drain the host first.",
            data={"environments": live},
        )
    try:
        async with db.begin_nested():
            await db.execute(delete(tables.Gpu).where(tables.Gpu.host_id == row.id))
            await db.execute(delete(tables.Host).where(tables.Host.id == row.id))
    except IntegrityError as error:
        raise InUse(
            f"Homes, past environments or tasks refer to {row.name}.",
            hint="Retire the host instead of deleting it.",
        ) from error
    await _record(db, actor, row, "host.deleted", f"Host {row.name} was deleted.")


async def create_enrollment_token(
    db: AsyncSession, *, actor: Actor, host: str, body: EnrollmentTokenCreate
) -> EnrollmentToken:
    """A single-use token for one agent. Older ones of the host are revoked."""
    authz.require(actor, Action.HOST_WRITE)
    row = await queries.found(db, host, lock=True)
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
