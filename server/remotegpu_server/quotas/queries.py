"""SQL of limits and of what is used of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ScalarSelect,
    and_,
    case,
    column,
    distinct,
    func,
    literal,
    or_,
    select,
    table,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from remotegpu.types.quotas import QuotaResource, QuotaSubject
from remotegpu_server.db import tables

_COLUMNS = tables.Allocation.__table__.columns
EVERY_ALLOCATION: Any = aliased(
    tables.Allocation,
    table("all_allocations", *(column(one.name, one.type) for one in _COLUMNS)),
    adapt_on_names=True,
)
"""Those in the history tables too: a window may be longer than rows stay in the hot ones."""

RESOURCES = tuple(resource for resource in QuotaResource if resource is not QuotaResource.UNKNOWN)
ENDED = ("stopped", "failed", "deleted")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a limit binds."""

    kind: QuotaSubject
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Bound:
    """The limit that counts now, with an approved raise in it."""

    limit: int | None
    window_s: int | None = None
    policy: str | None = None
    raised_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A time during which a GPU, or a part of one, was held."""

    start: datetime
    stop: datetime
    fraction: float

    @property
    def seconds(self) -> float:
        return (self.stop - self.start).total_seconds() * self.fraction


UNBOUND = Bound(limit=None)
"""Where there is no row."""

Key = tuple[str, str, str]
"""Kind and id of the subject, and the resource."""


def raised() -> ColumnElement[bool]:
    """Whether an approved request counts now."""
    row = tables.Quota
    return and_(row.granted_until > func.now(), row.granted_value > row.limit_value)


def effective() -> ColumnElement[int | None]:
    """The limit that counts now."""
    row = tables.Quota
    return case((raised(), row.granted_value), else_=row.limit_value)


async def limits(db: AsyncSession, *, subjects: Sequence[Subject], lock: bool) -> dict[Key, Bound]:
    """Every limit of the subjects. ``lock`` keeps others from placing against them, in id order."""
    row, policy = tables.Quota, tables.QuotaPolicy
    wanted = or_(*(and_(row.subject_type == str(one.kind), row.subject_id == one.id) for one in subjects))
    found = (
        select(row, effective(), policy.name, case((raised(), row.granted_until)))
        .select_from(row)
        .outerjoin(policy, policy.id == row.policy_id)
        .where(wanted)
        .order_by(row.id)
        .execution_options(populate_existing=True)
    )
    if lock:
        found = found.with_for_update(of=row)
    return {
        (quota.subject_type, quota.subject_id, quota.resource): Bound(limit, quota.window_s, name, until)
        for quota, limit, name, until in await db.execute(found)
    }


async def used(
    db: AsyncSession,
    *,
    wanted: Mapping[Key, int | None],
    without_environment: str | None = None,
) -> dict[Key, float | None]:
    """What the subjects hold, in one statement: sums over rows, never a counter; ``None``: not measured.

    ``wanted`` maps what is asked for to its window in seconds (of GPU-hours).
    """
    if not wanted:
        return {}
    sums = [_sum(key, window_s, without_environment) for key, window_s in wanted.items()]
    values = (await db.execute(select(*sums))).one()
    return {key: None if value is None else float(value) for key, value in zip(wanted, values, strict=True)}


def _sum(key: Key, window_s: int | None, without_environment: str | None) -> ScalarSelect[Any]:
    kind, subject_id, resource = key
    held, promised, wanted = tables.Placement, tables.Allocation, tables.Environment
    attempt = tables.Attempt
    if resource in (QuotaResource.CPUS, QuotaResource.MEMORY_BYTES):
        column = held.cpus if resource == QuotaResource.CPUS else held.memory_bytes
        return (
            select(func.coalesce(func.sum(column), 0))
            .where(held.released_at.is_(None), of_subject(held, kind) == subject_id)
            .scalar_subquery()
        )
    if resource == QuotaResource.GPUS:
        return (
            select(func.coalesce(func.sum(promised.gpu_fraction), 0))
            .where(promised.released_at.is_(None), of_subject(promised, kind) == subject_id)
            .scalar_subquery()
        )
    if resource == QuotaResource.GPU_HOURS:
        return gpu_hours(of_subject(EVERY_ALLOCATION, kind) == subject_id, window_s=window_s)
    if resource == QuotaResource.ENVIRONMENTS:
        live = select(func.count(wanted.id)).where(
            of_subject(wanted, kind) == subject_id, wanted.status.not_in(ENDED)
        )
        if without_environment is not None:
            live = live.where(wanted.id != without_environment)
        return live.scalar_subquery()
    if resource == QuotaResource.STORAGE_BYTES:
        return storage_bytes(kind, literal(subject_id))
    return (
        select(func.count(distinct(tuple_(attempt.task_id, attempt.number))))
        .join(held, held.attempt_id == attempt.id)
        .where(held.released_at.is_(None), of_subject(held, kind) == subject_id)
        .scalar_subquery()
    )


def of_subject(rows: Any, kind: str) -> ColumnElement[str]:
    """The column that says whose a row is."""
    if kind == QuotaSubject.USER:
        found: Any = rows.owner_id if rows is tables.Environment else rows.user_id
    else:
        found = rows.workspace_id if kind == QuotaSubject.WORKSPACE else rows.customer_id
    column: ColumnElement[str] = found
    return column


def gpu_hours(whose: ColumnElement[bool], *, window_s: Any) -> ScalarSelect[Any]:
    """GPU-hours within the window: released allocations too, live ones up to now."""
    promised = EVERY_ALLOCATION
    begin = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, window_s)
    end = func.least(func.coalesce(promised.released_at, func.now()), func.now())
    seconds = func.extract("epoch", end - func.greatest(promised.allocated_at, begin))
    return (
        select(func.coalesce(func.sum(func.greatest(seconds, 0) * promised.gpu_fraction), 0) / 3600)
        .where(whose, or_(promised.released_at.is_(None), promised.released_at > begin))
        .scalar_subquery()
    )


def storage_bytes(kind: str, subject_id: Any) -> ScalarSelect[Any]:
    """What the homes that exist take of the disk; ``NULL`` where none of them was measured.

    Homes belong to users: a personal workspace has its owner's, a team's has none and is ``NULL``. Those on
    retired hosts do not count: nobody reaches them.
    """
    row, user, workspace, host = tables.Volume, tables.User, tables.Workspace, tables.Host
    total = case((func.count(row.id) == 0, 0), else_=func.sum(row.size_bytes))
    reached = host.id.is_(None) | (host.operational != "retired")
    homes = (
        select(total)
        .select_from(row)
        .outerjoin(host, host.id == row.host_id)
        .where(row.removed_at.is_(None), reached)
    )
    if kind == QuotaSubject.USER:
        return homes.where(row.owner_id == subject_id).scalar_subquery()
    if kind == QuotaSubject.CUSTOMER:
        homes = homes.join(user, user.id == row.owner_id)
        return homes.where(user.customer_id == subject_id).scalar_subquery()
    homes = homes.where(row.owner_id == workspace.personal_of).correlate(workspace)
    personal = select(homes.scalar_subquery()).select_from(workspace)
    return personal.where(workspace.id == subject_id, workspace.personal_of.is_not(None)).scalar_subquery()


async def gpu_spans(db: AsyncSession, *, subject: Subject, window_s: int) -> tuple[datetime, list[Span]]:
    """The database's now, and what the subject held of GPUs within the window, live ones up to now."""
    promised = EVERY_ALLOCATION
    begin = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, window_s)
    end = func.least(func.coalesce(promised.released_at, func.now()), func.now())
    rows = await db.execute(
        select(func.now(), func.greatest(promised.allocated_at, begin), end, promised.gpu_fraction).where(
            of_subject(promised, subject.kind) == subject.id, end > begin
        )
    )
    spans = [(now, Span(start, stop, fraction)) for now, start, stop, fraction in rows]
    now = spans[0][0] if spans else (await db.execute(select(func.now()))).scalar_one()
    return now, [span for _, span in spans]


async def holders(
    db: AsyncSession, *, owner_id: str, resource: QuotaResource, without_environment: str | None
) -> Sequence[tables.Environment]:
    """The owner's environments that give some of the resource back when stopped."""
    wanted, held = tables.Environment, tables.Placement
    found = select(wanted).where(wanted.owner_id == owner_id).order_by(wanted.queued_at).limit(5)
    if resource is QuotaResource.ENVIRONMENTS:
        found = found.where(wanted.status.not_in(ENDED))
    else:
        found = found.join(held, (held.environment_id == wanted.id) & held.released_at.is_(None))
    if resource in (QuotaResource.GPUS, QuotaResource.GPU_HOURS):
        found = found.where(wanted.gpus > 0)
    if without_environment is not None:
        found = found.where(wanted.id != without_environment)
    return (await db.scalars(found)).all()
