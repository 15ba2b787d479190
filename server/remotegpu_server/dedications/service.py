"""Lending hosts: made, looked at, extended, ended, reclaimed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, insert, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import InUse, Invalid, NotFound, StateConflict
from remotegpu.types.dedications import (
    Dedication,
    DedicationCreate,
    DedicationEnd,
    DedicationExtend,
    DedicationReclaim,
)
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import SYSTEM, Action, Actor
from remotegpu_server.customers import service as customers
from remotegpu_server.db import tables
from remotegpu_server.dedications import cleanup, convert, lifecycle
from remotegpu_server.hosts import queries as host_queries

REMINDER_DAYS = (1, 3, 7)
"""Days before the end on which its people are told: only the nearest that has come, so nobody gets three at
once."""


async def list_dedications(
    db: AsyncSession, *, actor: Actor, host: str | None, limit: int, cursor: str | None
) -> Page[Dedication]:
    """Newest first. Everybody sees those of the own customer; of a workspace, only its members."""
    authz.require(actor, Action.DEDICATION_READ)
    row, machine = tables.Dedication, tables.Host
    found = select(row.id).join(machine, machine.id == row.host_id).where(_visible(actor))
    if host is not None:
        found = found.where((machine.id == host) | (machine.name == host))
    if cursor is not None:
        before = select(row.created_at).where(row.id == cursor).scalar_subquery()
        found = found.where(or_(row.created_at < before, (row.created_at == before) & (row.id < cursor)))
    ids = (await db.scalars(found.order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1))).all()
    return Page[Dedication](
        items=await _to_wire(db, ids[:limit]), next_cursor=ids[limit - 1] if len(ids) > limit else None
    )


def _visible(actor: Actor) -> ColumnElement[bool]:
    row, seen = tables.Dedication, authz.visibility(actor)
    if seen.everything:
        return row.id.is_not(None)
    own = row.customer_id == actor.customer_id
    if seen.customer_id is not None:
        return own
    return own & (row.workspace_id.is_(None) | row.workspace_id.in_(seen.workspace_ids))


async def _to_wire(db: AsyncSession, ids: Sequence[str]) -> list[Dedication]:
    row, step = tables.Dedication, tables.DedicationStep
    rows = await db.execute(
        select(row, tables.Host.name, tables.Customer.name)
        .join(tables.Host, tables.Host.id == row.host_id)
        .join(tables.Customer, tables.Customer.id == row.customer_id)
        .where(row.id.in_(ids))
        .execution_options(populate_existing=True)
    )
    found = {one.id: (one, host_name, customer_name) for one, host_name, customer_name in rows}
    steps: dict[str, list[tables.DedicationStep]] = {}
    for one in await db.scalars(
        select(step)
        .where(step.dedication_id.in_(ids))
        .order_by(step.position)
        .execution_options(populate_existing=True)
    ):
        steps.setdefault(one.dedication_id, []).append(one)
    return [
        convert.to_wire(
            found[one][0],
            host_name=found[one][1],
            customer_name=found[one][2],
            steps=steps.get(one, ()),
        )
        for one in ids
    ]


async def get_dedication(db: AsyncSession, *, actor: Actor, dedication: str) -> Dedication:
    """With the steps of its clean-up."""
    authz.require(actor, Action.DEDICATION_READ)
    row = tables.Dedication
    if await db.scalar(select(row.id).where(row.id == dedication, _visible(actor))) is None:
        raise NotFound("There is no such dedication.")
    (shown,) = await _to_wire(db, [dedication])
    return shown


async def create_dedication(db: AsyncSession, *, actor: Actor, body: DedicationCreate) -> Dedication:
    """Lend a host. The exclusion constraint refuses a period that overlaps another of this host."""
    authz.require(actor, Action.DEDICATION_WRITE)
    host = await host_queries.found(db, body.host, lock=True)
    customer = await customers.find(db, body.customer)
    if host.operational == "retired":
        raise StateConflict(f"Host {host.name} is retired.")
    workspace = tables.Workspace
    if body.workspace is not None and not await db.scalar(
        select(workspace.id).where(workspace.id == body.workspace, workspace.customer_id == customer.id)
    ):
        raise NotFound("The customer has no such workspace.")
    row = tables.Dedication
    dedication_id = tables.new_id("ded")
    values = {
        "id": dedication_id,
        "host_id": host.id,
        "customer_id": customer.id,
        "workspace_id": body.workspace,
        "starts_at": func.now() if body.starts_at is None else body.starts_at,
        "ends_at": body.ends_at,
        "remark": body.remark,
        "created_by": actor.name,
    }
    try:
        async with db.begin_nested():
            made = await db.scalar(insert(row).values(**values).returning(row))
    except IntegrityError as error:
        raise await _refused(db, error, host=host) from error
    assert made is not None
    if made.ends_at <= await _now(db):
        raise Invalid("The period is over already.")
    await lifecycle.record(
        db, made, what="created", message=f"Host {host.name} is lent to {customer.name}.", actor=actor
    )
    audit.note(db, resource_id=made.id, new=body.model_dump(mode="json"))
    await activate(db, dedication_id=made.id, refuse_foreign=True)
    (shown,) = await _to_wire(db, [made.id])
    return shown


async def _now(db: AsyncSession) -> datetime:
    now: datetime | None = await db.scalar(select(func.now()))
    assert now is not None
    return now


async def _refused(db: AsyncSession, error: IntegrityError, *, host: tables.Host) -> Exception:
    if "ex_dedications_host_period" not in str(error.orig):
        return Invalid("The period ends before it begins.")
    row = tables.Dedication
    last = await db.scalar(
        select(func.max(row.ends_at)).where(row.host_id == host.id, row.status != "cancelled")
    )
    assert last is not None, "something overlaps"
    return StateConflict(
        f"Host {host.name} is lent for a part of this time already.",
        hint=f"It is free from {last.isoformat()} on.",
        data={"free_from": last.isoformat()},
    )


async def activate(db: AsyncSession, *, dedication_id: str, refuse_foreign: bool = False) -> None:
    """Begin one whose time has come, if the host is not still another's. ``refuse_foreign``: raise
    :class:`InUse` while others work there; a planned one begins all the same, and their work goes on.
    """
    dedication = await lifecycle.locked(db, dedication_id=dedication_id)
    row, held = tables.Dedication, tables.Placement
    if dedication.status != "scheduled" or dedication.starts_at > await _now(db):
        return
    taken = select(row.id).where(row.host_id == dedication.host_id, row.status.in_(lifecycle.LIVE))
    if await db.scalar(taken) is not None:
        return
    foreign = await db.scalar(
        select(func.count())
        .select_from(held)
        .where(
            held.host_id == dedication.host_id, held.released_at.is_(None), ~lifecycle.of_tenant(dedication)
        )
    )
    if foreign and refuse_foreign:
        raise InUse(
            f"{foreign} environments of others hold something on the host.", hint="Drain the host first."
        )
    await lifecycle.move(
        db,
        dedication=dedication,
        to="active",
        message=f"The host works for its tenant alone until {dedication.ends_at:%Y-%m-%d %H:%M} UTC.",
        actor=SYSTEM,
        activated_at=func.now(),
    )


async def extend(db: AsyncSession, *, actor: Actor, dedication: str, body: DedicationExtend) -> Dedication:
    """Another end, in the future; one in its grace becomes active again."""
    authz.require(actor, Action.DEDICATION_WRITE)
    row = await lifecycle.locked(db, dedication_id=dedication)
    if row.status not in ("scheduled", "active", "grace"):
        raise StateConflict(f"The dedication is {row.status}.")
    if body.ends_at <= max(await _now(db), row.starts_at):
        raise Invalid("The new end must be in the future.", hint="To end it now: `:end`.")
    audit.note(db, old={"ends_at": row.ends_at}, new={"ends_at": body.ends_at})
    host = await host_queries.found(db, row.host_id)
    try:
        async with db.begin_nested():
            row = await lifecycle.change(db, row, ends_at=body.ends_at)
    except IntegrityError as error:
        raise await _refused(db, error, host=host) from error
    message = f"The host is lent until {body.ends_at:%Y-%m-%d %H:%M} UTC."
    if row.status == "grace":
        await lifecycle.move(db, dedication=row, to="active", message=message, actor=actor)
    else:
        await lifecycle.record(db, row, what="extended", message=message, actor=actor)
    (shown,) = await _to_wire(db, [row.id])
    return shown


async def end(db: AsyncSession, *, actor: Actor, dedication: str, body: DedicationEnd) -> Dedication:
    """Before it began: it never was. Active: its grace begins now."""
    authz.require(actor, Action.DEDICATION_WRITE)
    row = await lifecycle.locked(db, dedication_id=dedication)
    audit.note(db, old={"status": row.status}, new={"reason": body.reason})
    if row.status == "scheduled":
        await lifecycle.move(
            db,
            dedication=row,
            to="cancelled",
            message="Cancelled before it began.",
            actor=actor,
            end_reason=body.reason,
        )
    elif row.status == "active":
        row = await lifecycle.change(db, row, ends_at=func.now(), end_reason=body.reason)
        await begin_grace(db, dedication=row, actor=actor)
    else:
        raise StateConflict(f"The dedication is {row.status}.")
    (shown,) = await _to_wire(db, [row.id])
    return shown


async def begin_grace(db: AsyncSession, *, dedication: tables.Dedication, actor: Actor) -> None:
    """The period is over: its people are told, once."""
    message = "The period is over. Save what you need: what runs is stopped and the files there are removed."
    changed = await lifecycle.move(db, dedication=dedication, to="grace", message=message, actor=actor)
    key = f"dedication:{changed.id}:{changed.ends_at.isoformat()}:end"
    await lifecycle.tell(db, changed, what="grace", message=message, dedupe_key=key)


async def reclaim(db: AsyncSession, *, actor: Actor, dedication: str, body: DedicationReclaim) -> Dedication:
    """Begin the clean-up, or begin its failed steps anew. Refused while work runs, unless forced."""
    authz.require(actor, Action.DEDICATION_WRITE)
    row = await lifecycle.locked(db, dedication_id=dedication)
    held = tables.Placement
    audit.note(db, old={"status": row.status}, new={"reason": body.reason, "force": body.force})
    if row.status == "cleaning":
        await cleanup.retry(db, dedication=row)
    elif row.status in ("active", "grace"):
        live = await db.scalar(
            select(func.count()).select_from(held).where(lifecycle.of_tenant(row), held.released_at.is_(None))
        )
        if live and not body.force:
            raise InUse(
                f"{live} environments of the tenant run there.",
                hint="With `force` they are stopped.",
                data={"environments": live},
            )
        message = f"Reclaimed by {actor.name}: {body.reason}"
        await cleanup.begin(db, dedication=row, message=message, reason=body.reason, actor=actor)
    else:
        raise StateConflict(f"The dedication is {row.status}.")
    (shown,) = await _to_wire(db, [row.id])
    return shown


async def remind(db: AsyncSession, *, dedication_id: str) -> None:
    """Tell the people of an active dedication that its end is near; each day's reminder once."""
    row = tables.Dedication
    dedication = await db.scalar(select(row).where(row.id == dedication_id, row.status == "active"))
    now = await _now(db)
    if dedication is None or dedication.ends_at <= now:
        return
    left = dedication.ends_at - now
    days = next((days for days in REMINDER_DAYS if left <= timedelta(days=days)), None)
    if days is None:
        return
    await lifecycle.tell(
        db,
        dedication,
        what="ends_soon",
        message=f"In {days} days or less the host is given back, and the files there are removed.",
        dedupe_key=f"dedication:{dedication.id}:{dedication.ends_at.isoformat()}:{days}d",
    )
