"""Limits are checked in the transaction that takes, with the limit rows locked in id order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NotFound, QuotaExceeded
from remotegpu.types.quotas import Quota, QuotaLine, QuotaResource, QuotaSubject, QuotaUpdate
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.placement import gib

RESOURCES = (QuotaResource.GPUS, QuotaResource.ENVIRONMENTS, QuotaResource.CPUS, QuotaResource.MEMORY_BYTES)
ENDED = ("stopped", "failed", "deleted")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a limit binds."""

    kind: QuotaSubject
    id: str
    name: str


def _environment_of(subject: Subject) -> ColumnElement[bool]:
    column = (
        tables.Environment.owner_id if subject.kind is QuotaSubject.USER else tables.Environment.customer_id
    )
    return column == subject.id


async def _used(
    db: AsyncSession, *, subject: Subject, without_environment: str | None
) -> dict[QuotaResource, float]:
    """What the subject holds: sums over live rows, never a counter."""
    of_user = subject.kind is QuotaSubject.USER
    held, promised, wanted = tables.Placement, tables.Allocation, tables.Environment
    placed = (
        await db.execute(
            select(
                func.coalesce(func.sum(held.cpus), 0.0), func.coalesce(func.sum(held.memory_bytes), 0)
            ).where(held.released_at.is_(None), (held.user_id if of_user else held.customer_id) == subject.id)
        )
    ).one()
    gpus = await db.scalar(
        select(func.sum(promised.gpu_fraction)).where(
            promised.released_at.is_(None),
            (promised.user_id if of_user else promised.customer_id) == subject.id,
        )
    )
    live = (
        select(func.count()).select_from(wanted).where(_environment_of(subject), wanted.status.not_in(ENDED))
    )
    if without_environment is not None:
        live = live.where(wanted.id != without_environment)
    return {
        QuotaResource.GPUS: float(gpus or 0),
        QuotaResource.ENVIRONMENTS: float(await db.scalar(live) or 0),
        QuotaResource.CPUS: float(placed[0]),
        QuotaResource.MEMORY_BYTES: float(placed[1]),
    }


async def check(
    db: AsyncSession,
    *,
    subjects: Sequence[Subject],
    adding: Mapping[QuotaResource, float],
    environment_id: str | None = None,
    lock: bool = True,
) -> None:
    """Lock the limits and raise :class:`QuotaExceeded` for the first that ``adding`` would pass.

    ``environment_id`` is the environment that asks: it is not counted among the ones in use.
    """
    for subject, limits in await _limits(db, subjects=subjects, lock=lock):
        bound = {resource: limit for resource, limit in limits.items() if limit is not None}
        if not bound:
            continue
        used = await _used(db, subject=subject, without_environment=environment_id)
        for resource, limit in bound.items():
            wanted = adding.get(resource, 0)
            if wanted and used[resource] + wanted > limit:
                own = await _holders(
                    db, owner_id=subjects[0].id, resource=resource, without_environment=environment_id
                )
                raise _exceeded(subject, resource, limit, used[resource], wanted, own)


async def _limits(
    db: AsyncSession, *, subjects: Sequence[Subject], lock: bool
) -> list[tuple[Subject, dict[QuotaResource, int | None]]]:
    row = tables.Quota
    wanted = or_(*(and_(row.subject_type == str(one.kind), row.subject_id == one.id) for one in subjects))
    found = select(row).where(wanted).order_by(row.id).execution_options(populate_existing=True)
    if lock:
        found = found.with_for_update()
    rows = (await db.scalars(found)).all()
    return [
        (
            one,
            {
                resource: next(
                    (
                        limit.limit_value
                        for limit in rows
                        if (limit.subject_type, limit.subject_id, limit.resource)
                        == (str(one.kind), one.id, str(resource))
                    ),
                    None,
                )
                for resource in RESOURCES
            },
        )
        for one in subjects
    ]


def _exceeded(
    subject: Subject,
    resource: QuotaResource,
    limit: int,
    used: float,
    requested: float,
    own: Sequence[tables.Environment],
) -> QuotaExceeded:
    who = f"User {subject.name}" if subject.kind is QuotaSubject.USER else f"Customer {subject.name}"
    detail = (
        f"{who} may hold {_amount(resource, limit)} at once; {_plain(resource, used)} "
        f"{'is' if used == 1 else 'are'} in use and this request needs {_plain(resource, requested)} more."
    )
    return QuotaExceeded(
        detail,
        hint=_hint(resource, limit, requested, own),
        data={
            "subject": str(subject.kind),
            "subject_id": subject.id,
            "subject_name": subject.name,
            "resource": str(resource),
            "limit": limit,
            "used": used,
            "requested": requested,
            "available": max(limit - used, 0),
            "environments": [
                {"id": one.id, "name": one.name, "status": one.status, "gpus": one.gpus} for one in own
            ],
        },
    )


async def _holders(
    db: AsyncSession, *, owner_id: str, resource: QuotaResource, without_environment: str | None
) -> Sequence[tables.Environment]:
    """The owner's environments that give some of the resource back when stopped."""
    wanted, held = tables.Environment, tables.Placement
    found = select(wanted).where(wanted.owner_id == owner_id).order_by(wanted.queued_at).limit(5)
    if resource is QuotaResource.ENVIRONMENTS:
        found = found.where(wanted.status.not_in(ENDED))
    else:
        found = found.join(held, (held.environment_id == wanted.id) & held.released_at.is_(None))
    if resource is QuotaResource.GPUS:
        found = found.where(wanted.gpus > 0)
    if without_environment is not None:
        found = found.where(wanted.id != without_environment)
    return (await db.scalars(found)).all()


def _hint(resource: QuotaResource, limit: int, requested: float, own: Sequence[tables.Environment]) -> str:
    if requested > limit:
        return f"Ask for at most {_amount(resource, limit)}, or ask an admin for a higher limit."
    if not own:
        return "Others of your customer hold it; wait, or ask an admin for a higher limit."
    names = ", ".join(f"{one.name} ({one.status}, {_amount(QuotaResource.GPUS, one.gpus)})" for one in own)
    return f"Stop one of yours first: {names}."


_UNITS = {QuotaResource.GPUS: "GPU", QuotaResource.ENVIRONMENTS: "environment", QuotaResource.CPUS: "CPU"}


def _plain(resource: QuotaResource, value: float) -> str:
    return f"{gib(int(value))} of memory" if resource is QuotaResource.MEMORY_BYTES else f"{value:g}"


def _amount(resource: QuotaResource, value: float) -> str:
    if resource is QuotaResource.MEMORY_BYTES:
        return _plain(resource, value)
    return f"{value:g} {_UNITS[resource]}{'' if value == 1 else 's'}"


async def subjects_of_user(db: AsyncSession, *, user_id: str) -> tuple[Subject, Subject]:
    """The user and its customer, in the order in which refusals name them."""
    user, customer = tables.User, tables.Customer
    found = await db.execute(
        select(user.username, customer.id, customer.name)
        .join(customer, customer.id == user.customer_id)
        .where(user.id == user_id)
    )
    username, customer_id, customer_name = found.one()
    return (
        Subject(QuotaSubject.USER, user_id, username),
        Subject(QuotaSubject.CUSTOMER, customer_id, customer_name),
    )


async def lines(db: AsyncSession, *, subjects: Sequence[Subject]) -> list[QuotaLine]:
    """Every limit of the subjects with its use, unlimited ones included."""
    result = []
    for subject, limits in await _limits(db, subjects=subjects, lock=False):
        used = await _used(db, subject=subject, without_environment=None)
        result += [
            QuotaLine(
                subject=subject.kind,
                subject_id=subject.id,
                resource=resource,
                limit=limit,
                used=used[resource],
                available=None if limit is None else max(limit - used[resource], 0.0),
            )
            for resource, limit in limits.items()
        ]
    return result


async def get_quota(db: AsyncSession, *, actor: Actor) -> Quota:
    """The limits that bind the caller: its own and its customer's."""
    authz.require(actor, Action.QUOTA_READ)
    assert actor.user_id is not None, "people and workloads have a user"
    return Quota(lines=await lines(db, subjects=await subjects_of_user(db, user_id=actor.user_id)))


async def get_quota_of(db: AsyncSession, *, actor: Actor, subject: QuotaSubject, subject_id: str) -> Quota:
    """The limits of a user (with its customer's) or of a customer."""
    found = await _readable(db, actor=actor, action=Action.QUOTA_READ_OF, kind=subject, given=subject_id)
    return Quota(lines=await lines(db, subjects=await _with_those_above(db, found)))


async def set_quota(
    db: AsyncSession, *, actor: Actor, subject: QuotaSubject, subject_id: str, body: QuotaUpdate
) -> Quota:
    """Set the limits that ``body`` names. One below the present use only refuses what is new."""
    found = await _readable(db, actor=actor, action=Action.QUOTA_WRITE, kind=subject, given=subject_id)
    if QuotaResource.UNKNOWN in body.limits:
        raise Invalid("This is not a resource.", hint=f"Resources: {', '.join(RESOURCES)}.")
    row = tables.Quota
    for resource, limit in sorted(body.limits.items()):
        made = insert(row).values(
            subject_type=str(found.kind), subject_id=found.id, resource=str(resource), limit_value=limit
        )
        await db.execute(
            made.on_conflict_do_update(
                index_elements=["subject_type", "subject_id", "resource"],
                set_={"limit_value": limit, "changed_at": func.now()},
            )
        )
    await events.record(
        db,
        kind="quota.changed",
        subject_type="quota",
        subject_id=found.id,
        actor=actor,
        message=f"Limits of {found.kind} {found.name} were changed.",
        data={
            "subject": str(found.kind),
            "limits": {str(name): limit for name, limit in body.limits.items()},
        },
        customer_id=found.id if found.kind is QuotaSubject.CUSTOMER else None,
        user_id=found.id if found.kind is QuotaSubject.USER else None,
    )
    notify(db, "queue")
    return Quota(lines=await lines(db, subjects=await _with_those_above(db, found)))


async def _with_those_above(db: AsyncSession, subject: Subject) -> Sequence[Subject]:
    return await subjects_of_user(db, user_id=subject.id) if subject.kind is QuotaSubject.USER else [subject]


async def _readable(
    db: AsyncSession, *, actor: Actor, action: Action, kind: QuotaSubject, given: str
) -> Subject:
    """The user or customer of that id or name, if the actor may."""
    if kind is QuotaSubject.USER:
        user = tables.User
        user_row = await db.scalar(select(user).where((user.id == given) | (user.username == given)))
        found = Subject(kind, user_row.id, user_row.username) if user_row else None
        owner = {"user_id": user_row.id, "customer_id": user_row.customer_id} if user_row else {}
    elif kind is QuotaSubject.CUSTOMER:
        customer = tables.Customer
        row = await db.scalar(select(customer).where((customer.id == given) | (customer.name == given)))
        found = Subject(kind, row.id, row.name) if row else None
        owner = {"customer_id": row.id} if row else {}
    else:
        raise Invalid("Quotas bind a user or a customer.")
    if found is None:
        raise NotFound(f"There is no such {kind}.")
    authz.require(actor, action, noun=str(kind), **owner)
    return found
