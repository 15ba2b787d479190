"""Promising GPUs for a period, and giving the promise back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Conflict, Invalid, NotFound, StateConflict
from remotegpu.types.reservations import Calendar, CalendarEntry, ModelTotal, Reservation, ReservationCreate
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import (
    RESERVATION_HORIZON_S,
    RESERVATION_MAX_AHEAD_S,
    RESERVATION_MAX_LENGTH_S,
)
from remotegpu_server.reservations import convert, queries
from remotegpu_server.reservations.promises import PoolGpu, Promise, shortage
from remotegpu_server.workspaces import service as workspaces


async def create_reservation(db: AsyncSession, *, actor: Actor, body: ReservationCreate) -> Reservation:
    """Promise it, or refuse with the next free slot. The lock lets one promise at a time look and write."""
    authz.require(actor, Action.RESERVATION_CREATE)
    customer_id, workspace_id = await _for_whom(db, actor=actor, body=body)
    await queries.lock_promises(db, exclusive=True)
    now = await _now(db)
    await _check_times(db, body=body, now=now)
    wanted = Promise(
        id=tables.new_id("rsv"),
        gpus=body.gpus,
        model=body.gpu_model or None,
        starts_at=body.starts_at,
        ends_at=body.ends_at,
        customer_id=customer_id,
        workspace_id=workspace_id,
        labels=body.host_labels,
    )
    await _require_room(db, wanted=wanted, now=now)
    row = tables.Reservation
    await db.execute(
        insert(row).values(
            id=wanted.id,
            name=body.name,
            customer_id=customer_id,
            workspace_id=workspace_id,
            gpus=wanted.gpus,
            gpu_model=wanted.model,
            host_labels=body.host_labels,
            starts_at=wanted.starts_at,
            ends_at=wanted.ends_at,
            created_by=actor.user_id,
        )
    )
    (bundle,) = await queries.bundles(db, ids=[wanted.id])
    await _record(db, bundle.reservation, kind="reservation.created", actor=actor, message=_words(wanted))
    return convert.to_wire(bundle)


async def _for_whom(db: AsyncSession, *, actor: Actor, body: ReservationCreate) -> tuple[str, str | None]:
    if body.customer is not None:
        if body.workspace is not None:
            raise Invalid("Both a workspace and a customer were given.", hint="Leave one out.")
        authz.require(
            actor, Action.RESERVATION_CREATE_FOR_CUSTOMER, customer_id=body.customer, noun="customer"
        )
        known = await db.scalar(select(tables.Customer.id).where(tables.Customer.id == body.customer))
        if known is None:
            raise NotFound("There is no such customer.")
        return body.customer, None
    if body.workspace is None:
        mine = await workspaces.to_use(db, actor=actor, workspace=None)
        return mine.customer_id, mine.id
    workspace = await db.scalar(select(tables.Workspace).where(tables.Workspace.id == body.workspace))
    if workspace is None:
        raise NotFound("There is no such workspace.")
    authz.require(
        actor,
        Action.RESERVATION_CREATE_FOR_WORKSPACE,
        customer_id=workspace.customer_id,
        workspace_id=workspace.id,
        noun="workspace",
    )
    workspaces.require_active(workspace)
    return workspace.customer_id, workspace.id


async def _check_times(db: AsyncSession, *, body: ReservationCreate, now: datetime) -> None:
    length_s = (body.ends_at - body.starts_at).total_seconds()
    most_s = await platform_settings.value(db, RESERVATION_MAX_LENGTH_S)
    ahead_s = await platform_settings.value(db, RESERVATION_MAX_AHEAD_S)
    if length_s <= 0 or body.ends_at <= now:
        raise Invalid("A reservation ends after its start, and in the future.")
    if length_s > most_s:
        raise Invalid(f"A reservation lasts at most {most_s / 86400:g} days.", hint="Make it shorter.")
    if (body.starts_at - now).total_seconds() > ahead_s:
        raise Invalid(f"A reservation starts at most {ahead_s / 86400:g} days from now.")


async def _require_room(db: AsyncSession, *, wanted: Promise, now: datetime) -> None:
    pool, promised = await queries.pool(db), await queries.open_promises(db)
    gone_by = now + timedelta(seconds=await platform_settings.value(db, RESERVATION_HORIZON_S))
    short = shortage(wanted, pool, promised, gone_by=gone_by)
    if short is None:
        return
    total = sum(wanted.covers(gpu) for gpu in pool)
    if total < wanted.gpus:
        raise Conflict(
            f"{_gpus(wanted)} wanted; there are {total} in all.",
            hint=f"Ask for at most {total}." if total else "Ask for another model.",
            data={"total": total, "next_free": None},
        )
    slot = next_slot(wanted, pool, promised, gone_by=gone_by)
    missing, at = short
    raise Conflict(
        f"{_gpus(wanted)} wanted; at {at:%Y-%m-%d %H:%M} UTC {missing} of them are promised or in use.",
        hint=f"The next free slot of this length starts at {slot[0]:%Y-%m-%d %H:%M} UTC." if slot else None,
        data={
            "missing": missing,
            "at": at.isoformat(),
            "next_free": {"starts_at": slot[0].isoformat(), "ends_at": slot[1].isoformat()} if slot else None,
        },
    )


def next_slot(
    wanted: Promise, pool: Sequence[PoolGpu], promised: Sequence[Promise], *, gone_by: datetime
) -> tuple[datetime, datetime] | None:
    """The first later period of the same length that could be promised."""
    length = wanted.ends_at - wanted.starts_at
    ends = {one.ends_at for one in promised} | {gpu.ends_at for gpu in pool if gpu.ends_at} | {gone_by}
    for start in sorted(end for end in ends if end > wanted.starts_at):
        moved = replace(wanted, starts_at=start, ends_at=start + length)
        if shortage(moved, pool, promised, gone_by=gone_by) is None:
            return start, start + length
    return None


async def list_reservations(
    db: AsyncSession, *, actor: Actor, over: bool, limit: int, cursor: str | None
) -> Page[Reservation]:
    """The next to start first; those that are over only when asked for."""
    authz.require(actor, Action.RESERVATION_LIST)
    row = tables.Reservation
    found = select(row.id).order_by(row.starts_at, row.id).limit(limit + 1)
    found = found.where(_visible(actor))
    if not over:
        found = found.where(row.ended_at.is_(None))
    if cursor is not None:
        last = select(row.starts_at).where(row.id == cursor).scalar_subquery()
        found = found.where((row.starts_at > last) | ((row.starts_at == last) & (row.id > cursor)))
    ids = list((await db.scalars(found)).all())
    items = [convert.to_wire(one) for one in await queries.bundles(db, ids=ids[:limit])]
    return Page[Reservation](items=items, next_cursor=ids[limit - 1] if len(ids) > limit else None)


def _visible(actor: Actor) -> Any:
    """Members see those of their workspaces and of their customer as a whole, owners all of the customer."""
    sees, row = authz.visibility(actor), tables.Reservation
    if sees.everything:
        return row.id.is_not(None)
    ours = row.customer_id == actor.customer_id
    if sees.customer_id is not None:
        return ours
    return or_(row.workspace_id.in_(sees.workspace_ids), ours & row.workspace_id.is_(None))


async def get_reservation(db: AsyncSession, *, actor: Actor, reservation_id: str) -> Reservation:
    """One reservation."""
    return convert.to_wire(await _readable(db, actor=actor, reservation_id=reservation_id))


async def _readable(
    db: AsyncSession, *, actor: Actor, reservation_id: str, action: Action = Action.RESERVATION_READ
) -> queries.Bundle:
    found = await queries.bundles(db, ids=[reservation_id])
    if not found:
        raise NotFound("There is no such reservation.")
    row = found[0].reservation
    if row.workspace_id is None and action is Action.RESERVATION_CANCEL:
        action = Action.RESERVATION_CREATE_FOR_CUSTOMER
    if (
        row.workspace_id is None
        and action is Action.RESERVATION_READ
        and row.customer_id == actor.customer_id
    ):
        authz.require(actor, Action.RESERVATION_LIST)
        return found[0]
    authz.require(
        actor,
        action,
        customer_id=row.customer_id,
        workspace_id=row.workspace_id,
        noun="reservation",
    )
    return found[0]


async def cancel_reservation(db: AsyncSession, *, actor: Actor, reservation_id: str) -> Reservation:
    """Give it back. What runs in it goes on until the end that it was given."""
    bundle = await _readable(db, actor=actor, reservation_id=reservation_id, action=Action.RESERVATION_CANCEL)
    if not await end(db, reservation_id=reservation_id, state="cancelled", actor=actor):
        raise StateConflict(f"{bundle.reservation.name} is over: {bundle.reservation.state}.")
    (bundle,) = await queries.bundles(db, ids=[reservation_id])
    return convert.to_wire(bundle)


async def end(db: AsyncSession, *, reservation_id: str, state: str, actor: Actor) -> bool:
    """Give the promise back, exactly once. False: it was over before."""
    row = tables.Reservation
    ended = await db.scalar(
        update(row)
        .where(row.id == reservation_id, row.ended_at.is_(None))
        .values(state=state, ended_at=func.now())
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    if ended is None:
        return False
    await _record(
        db, ended, kind=f"reservation.{state}", actor=actor, message=f"Reservation {ended.name} is {state}."
    )
    notify(db, "queue")
    return True


async def get_calendar(
    db: AsyncSession, *, actor: Actor, from_at: datetime | None, until_at: datetime | None
) -> Calendar:
    """Every promise in the period; others' without whose they are."""
    authz.require(actor, Action.RESERVATION_LIST)
    row = tables.Reservation
    first = from_at or await _now(db)
    last = until_at or first + timedelta(days=14)
    if last <= first:
        raise Invalid("The period ends before it starts.")
    found = await db.execute(
        select(row, _visible(actor))
        .where(row.ended_at.is_(None), row.starts_at < last, row.ends_at > first)
        .order_by(row.starts_at, row.id)
        .limit(1000)
    )
    totals = Counter(gpu.model for gpu in await queries.pool(db))
    return Calendar(
        from_at=first,
        until_at=last,
        entries=[
            CalendarEntry(
                starts_at=one.starts_at,
                ends_at=one.ends_at,
                gpus=one.gpus,
                gpu_model=one.gpu_model,
                reservation_id=one.id if mine else None,
                name=one.name if mine else None,
            )
            for one, mine in found
        ],
        models=[ModelTotal(gpu_model=model, total=count) for model, count in sorted(totals.items())],
    )


async def _now(db: AsyncSession) -> datetime:
    return (await db.execute(select(func.now()))).scalar_one()


def _gpus(wanted: Promise) -> str:
    return f"{wanted.gpus} {wanted.model or 'GPU'}{' GPUs' if wanted.model else 's'}"


def _words(wanted: Promise) -> str:
    first, last = f"{wanted.starts_at:%Y-%m-%d %H:%M}", f"{wanted.ends_at:%Y-%m-%d %H:%M}"
    return f"{_gpus(wanted)} promised from {first} to {last} UTC."


async def _record(
    db: AsyncSession, row: tables.Reservation, *, kind: str, actor: Actor, message: str
) -> None:
    await events.record(
        db,
        kind=kind,
        subject_type="reservation",
        subject_id=row.id,
        actor=actor,
        message=message,
        data={"gpus": row.gpus, "gpu_model": row.gpu_model},
        customer_id=row.customer_id,
        user_id=row.created_by,
        workspace_id=row.workspace_id,
    )
