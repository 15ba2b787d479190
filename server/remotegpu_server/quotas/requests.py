"""Asking for a higher limit, and the answer."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from remotegpu.errors import Forbidden, Invalid, NotFound, StateConflict
from remotegpu.types.quotas import (
    QuotaRequest,
    QuotaRequestApprove,
    QuotaRequestCreate,
    QuotaRequestRefuse,
    QuotaRequestStatus,
    QuotaResource,
    QuotaSubject,
)
from remotegpu.types.wire import Page
from remotegpu_server import authz, pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import SYSTEM, Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.notifications import service as notifications
from remotegpu_server.quotas import convert, queries, refusals, service
from remotegpu_server.quotas.queries import Subject

_DECIDER = aliased(tables.User)


async def create_request(db: AsyncSession, *, actor: Actor, body: QuotaRequestCreate) -> QuotaRequest:
    """Ask for a higher limit; owners of the customer and admins are told."""
    authz.require(actor, Action.QUOTA_REQUEST_LIST)
    service.refuse_unknown([body.resource])
    subject = await _subject(db, actor=actor, body=body)
    limit = (await queries.limits(db, subjects=[subject], lock=False)).get(
        (str(subject.kind), subject.id, str(body.resource)), queries.UNBOUND
    )
    if limit.limit is None:
        raise StateConflict(f"There is no limit of {body.resource} for {subject.kind} {subject.name}.")
    if body.amount <= limit.limit:
        raise Invalid(f"The limit is {refusals.amount(body.resource, limit.limit)} already: ask for more.")
    await _require_future(db, body.until)
    row = await _insert(db, actor=actor, body=body, subject=subject, limit=limit.limit)
    wanted = refusals.amount(body.resource, body.amount)
    message = (
        f"{actor.username} asks for {wanted} for {subject.kind} {subject.name}"
        f" (now {refusals.plain(body.resource, limit.limit)}): {body.why}"
    )
    await _tell(db, row=row, to=await _deciders(db, row), kind="opened", level="info", message=message)
    await _record(db, actor=actor, row=row, message=f"{actor.username} asked for {wanted}.")
    audit.note(db, resource_id=row.id, new=body.model_dump(mode="json"))
    return await _answer(db, row.id)


async def _insert(
    db: AsyncSession, *, actor: Actor, body: QuotaRequestCreate, subject: Subject, limit: int
) -> tables.QuotaRequest:
    try:
        async with db.begin_nested():
            row: tables.QuotaRequest | None = await db.scalar(
                insert(tables.QuotaRequest)
                .values(
                    id=tables.new_id("qrq"),
                    subject_type=str(subject.kind),
                    subject_id=subject.id,
                    subject_name=subject.name,
                    customer_id=await _customer_of(db, subject),
                    resource=str(body.resource),
                    amount=body.amount,
                    wanted_until=body.until,
                    why=body.why,
                    limit_before=limit,
                    requested_by=actor.user_id,
                )
                .returning(tables.QuotaRequest)
            )
    except IntegrityError as error:
        raise StateConflict(
            f"You have asked for more {body.resource} already.",
            hint="Withdraw that request first: `remotegpu quota requests` shows it.",
        ) from error
    assert row is not None
    return row


async def list_requests(
    db: AsyncSession, *, actor: Actor, status: QuotaRequestStatus | None, limit: int, cursor: str | None
) -> Page[QuotaRequest]:
    """Newest first: the own ones; for owners those of their customer, for admins all."""
    authz.require(actor, Action.QUOTA_REQUEST_LIST)
    row, sees = tables.QuotaRequest, authz.visibility(actor)
    query = _with_names()
    if not sees.everything:
        mine = row.requested_by == actor.user_id
        query = query.where(
            mine if sees.customer_id is None else or_(mine, row.customer_id == sees.customer_id)
        )
    if status is not None:
        query = query.where(row.status == str(status))
    if cursor is not None:
        query = query.where(pagination.before((row.created_at, row.id), cursor))
    rows = (await db.execute(query.order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1))).all()
    last = rows[limit - 1][0] if len(rows) > limit else None
    return Page[QuotaRequest](
        items=[convert.request_to_wire(one, requested_by=by, decided_by=to) for one, by, to in rows[:limit]],
        next_cursor=pagination.encode([last.created_at, last.id]) if last else None,
    )


async def get_request(db: AsyncSession, *, actor: Actor, request_id: str) -> QuotaRequest:
    """One request, for whoever asked and whoever may decide."""
    await _found(db, actor=actor, action=Action.QUOTA_REQUEST_READ, request_id=request_id)
    return await _answer(db, request_id)


async def approve(
    db: AsyncSession, *, actor: Actor, request_id: str, body: QuotaRequestApprove
) -> QuotaRequest:
    """Raise the limit at once, for a time or for good, and let the queue look again."""
    row = await _decidable(db, actor=actor, request_id=request_id)
    subject = Subject(QuotaSubject(row.subject_type), row.subject_id, row.subject_name)
    resource = QuotaResource(row.resource)
    amount, until = body.amount or row.amount, body.until or row.wanted_until
    await _require_future(db, until)
    before = (await queries.limits(db, subjects=[subject], lock=True)).get(
        (row.subject_type, row.subject_id, row.resource), queries.UNBOUND
    )
    if before.limit is None or amount <= before.limit:
        raise StateConflict("The limit is as high already.", hint="Refuse the request, or grant more.")
    if until is None:
        await service.set_own(db, subject=subject, resource=resource, limit=amount, window_s=before.window_s)
    else:
        await _raise(db, row=row, amount=amount, until=until)
    granted = {"granted_amount": amount, "granted_until": until}
    await _decide(db, row=row, actor=actor, status="approved", note=body.note, **granted)
    for_a_time = "" if until is None else f" until {refusals.clock(until)}"
    message = f"{actor.name} granted {refusals.amount(resource, amount)}{for_a_time}. {body.note}".rstrip()
    await _tell(db, row=row, to=[row.requested_by], kind="approved", level="info", message=message)
    await _record(db, actor=actor, row=row, message=message)
    audit.note(db, old=before.limit, new=amount, until=until)
    notify(db, "queue")
    return await _answer(db, row.id)


async def _raise(db: AsyncSession, *, row: tables.QuotaRequest, amount: int, until: datetime) -> None:
    quota = tables.Quota
    await db.execute(
        update(quota)
        .where(
            quota.subject_type == row.subject_type,
            quota.subject_id == row.subject_id,
            quota.resource == row.resource,
        )
        .values(granted_value=amount, granted_until=until, changed_at=func.now())
        .execution_options(synchronize_session=False)
    )


async def refuse(
    db: AsyncSession, *, actor: Actor, request_id: str, body: QuotaRequestRefuse
) -> QuotaRequest:
    """Say no, and why."""
    row = await _decidable(db, actor=actor, request_id=request_id)
    await _decide(db, row=row, actor=actor, status="refused", note=body.note)
    message = f"{actor.name} refused more {row.resource}: {body.note}"
    await _tell(db, row=row, to=[row.requested_by], kind="refused", level="warning", message=message)
    await _record(db, actor=actor, row=row, message=message)
    audit.note(db, reason=body.note)
    return await _answer(db, row.id)


async def withdraw(db: AsyncSession, *, actor: Actor, request_id: str) -> QuotaRequest:
    """Take an open request back."""
    row = await _found(db, actor=actor, action=Action.QUOTA_REQUEST_WITHDRAW, request_id=request_id)
    if row.status != "open":
        raise StateConflict(f"This request is {row.status}.")
    row.status = "withdrawn"
    await db.flush()
    await _record(db, actor=actor, row=row, message=f"{actor.name} took the request back.")
    return await _answer(db, row.id)


async def lapse(db: AsyncSession) -> int:
    """End the raises whose time is over; how many there were."""
    row, quota = tables.QuotaRequest, tables.Quota
    ended = (
        await db.scalars(
            update(row)
            .where(row.status == "approved", row.granted_until <= func.now())
            .values(status="lapsed")
            .returning(row)
            .execution_options(synchronize_session=False, populate_existing=True)
        )
    ).all()
    await db.execute(
        update(quota)
        .where(quota.granted_until <= func.now())
        .values(granted_value=None, granted_until=None, changed_at=func.now())
        .execution_options(synchronize_session=False)
    )
    for one in ended:
        message = f"The raised limit of {one.resource} for {one.subject_type} {one.subject_name} is over."
        await _tell(db, row=one, to=[one.requested_by], kind="lapsed", level="warning", message=message)
        await _record(db, actor=SYSTEM, row=one, message=message)
    return len(ended)


async def _subject(db: AsyncSession, *, actor: Actor, body: QuotaRequestCreate) -> Subject:
    assert actor.user_id is not None
    if body.subject_id is None:
        user, workspace, customer = await service.subjects_of(db, user_id=actor.user_id)
        own = {one.kind: one.id for one in (user, workspace, customer)}
    given = body.subject_id or own.get(body.subject, "")
    return await service.readable(
        db, actor=actor, action=Action.QUOTA_REQUEST_CREATE, kind=body.subject, given=given
    )


async def _customer_of(db: AsyncSession, subject: Subject) -> str:
    if subject.kind is QuotaSubject.CUSTOMER:
        return subject.id
    table: Any = tables.User if subject.kind is QuotaSubject.USER else tables.Workspace
    return str(await db.scalar(select(table.customer_id).where(table.id == subject.id)))


async def _require_future(db: AsyncSession, until: datetime | None) -> None:
    if until is not None and until <= (await db.execute(select(func.now()))).scalar_one():
        raise Invalid("The time limit is over already.", hint="Give a later time.")


def _with_names() -> Select[tables.QuotaRequest, str, str]:
    row, user = tables.QuotaRequest, tables.User
    return (
        select(row, user.username, _DECIDER.username)
        .select_from(row)
        .join(user, user.id == row.requested_by)
        .outerjoin(_DECIDER, _DECIDER.id == row.decided_by)
    )


async def _answer(db: AsyncSession, request_id: str) -> QuotaRequest:
    found = await db.execute(
        _with_names().where(tables.QuotaRequest.id == request_id).execution_options(populate_existing=True)
    )
    row, requested_by, decided_by = found.one()
    return convert.request_to_wire(row, requested_by=requested_by, decided_by=decided_by)


async def _found(db: AsyncSession, *, actor: Actor, action: Action, request_id: str) -> tables.QuotaRequest:
    row = tables.QuotaRequest
    found: tables.QuotaRequest | None = await db.scalar(
        select(row).where(row.id == request_id).with_for_update().execution_options(populate_existing=True)
    )
    if found is None:
        raise NotFound("There is no such request.")
    authz.require(actor, action, user_id=found.requested_by, customer_id=found.customer_id, noun="request")
    return found


async def _decidable(db: AsyncSession, *, actor: Actor, request_id: str) -> tables.QuotaRequest:
    row = await _found(db, actor=actor, action=Action.QUOTA_REQUEST_DECIDE, request_id=request_id)
    if not actor.is_admin and (row.subject_type == "customer" or row.requested_by == actor.user_id):
        raise Forbidden(
            "Owners decide for the users and workspaces of their customer, not for themselves and not for the"
            " customer.",
            hint="A platform admin can.",
        )
    if row.status != "open":
        raise StateConflict(f"This request is {row.status}.")
    return row


async def _decide(
    db: AsyncSession, *, row: tables.QuotaRequest, actor: Actor, status: str, note: str, **granted: Any
) -> None:
    await db.execute(
        update(tables.QuotaRequest)
        .where(tables.QuotaRequest.id == row.id)
        .values(status=status, decided_by=actor.user_id, decided_at=func.now(), note=note, **granted)
        .execution_options(synchronize_session=False)
    )


async def _deciders(db: AsyncSession, row: tables.QuotaRequest) -> list[str]:
    user = tables.User
    owns = (user.role == "owner") & (user.customer_id == row.customer_id)
    if row.subject_type == "customer":
        owns &= False
    found = select(user.id).where(
        user.status == "active", (user.role == "admin") | owns, user.id != row.requested_by
    )
    return list(await db.scalars(found))


async def _tell(
    db: AsyncSession,
    *,
    row: tables.QuotaRequest,
    to: Iterable[str],
    kind: str,
    level: notifications.Level,
    message: str,
) -> None:
    await notifications.tell(
        db,
        user_ids=to,
        kind=f"quota_request.{kind}",
        level=level,
        message=message,
        subject_type="quota_request",
        subject_id=row.id,
        data={"resource": row.resource, "amount": row.amount},
    )


async def _record(db: AsyncSession, *, actor: Actor, row: tables.QuotaRequest, message: str) -> None:
    await events.record(
        db,
        kind="quota_request.changed",
        subject_type="quota_request",
        subject_id=row.id,
        actor=actor,
        message=message,
        data={"resource": row.resource, "amount": row.amount},
        user_id=row.requested_by,
        customer_id=row.customer_id,
    )
