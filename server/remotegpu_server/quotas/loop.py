"""Background passes: GPU-hours while something runs, raises whose time is over, policies."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.environments import Reason
from remotegpu.types.quotas import QuotaResource, QuotaSubject
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments import queries as environments
from remotegpu_server.environments.service import stop
from remotegpu_server.events import service as events
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.notifications import service as notifications
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import (
    QUOTA_GPU_HOURS_GRACE_S,
    QUOTA_GPU_HOURS_WARN_PERCENT,
)
from remotegpu_server.quotas import policies, queries, refusals, requests
from remotegpu_server.tasks.service import stop as tasks

_log = structlog.get_logger(__name__)
_HOURS = QuotaResource.GPU_HOURS
_USED_UP = "Stopped because its GPU-hours are used up."


@dataclass(frozen=True, slots=True)
class _Meter:
    """A limit of GPU-hours of somebody who holds GPUs, or who was warned."""

    quota: tables.Quota
    limit: int
    used: float
    now: datetime

    @property
    def subject_name(self) -> str:
        return f"{self.quota.subject_type} {self.quota.subject_id}"


async def enforce_gpu_hours(work: Work) -> None:
    """Warn at a share of the limit, say when it is used up, stop after the grace."""
    async with work.session() as db:
        ids = [quota_id for kind in _kinds() for quota_id in await db.scalars(_watched(kind))]
    for quota_id in ids:
        over: list[tuple[str, str]] = []
        with by_itself("gpu-hours", str(quota_id)):
            async with work.session() as db:
                over = await _judge(db, quota_id=quota_id)
        for kind, holder_id in over:
            with by_itself("gpu-hours", holder_id):
                async with work.session() as db:
                    await _end(db, kind=kind, holder_id=holder_id)


async def _end(db: AsyncSession, *, kind: str, holder_id: str) -> None:
    if kind == "environment":
        await _stop(db, environment_id=holder_id)
    else:
        await tasks.end_by_itself(db, task_id=holder_id, reason=Reason.QUOTA, message=_USED_UP)


def _kinds() -> tuple[QuotaSubject, ...]:
    return (QuotaSubject.USER, QuotaSubject.WORKSPACE, QuotaSubject.CUSTOMER)


def _watched(kind: QuotaSubject) -> Any:
    row, held = tables.Quota, tables.Allocation
    holds = exists().where(queries.of_subject(held, kind) == row.subject_id, held.released_at.is_(None))
    told = or_(row.warned_at.is_not(None), row.exceeded_at.is_not(None))
    return select(row.id).where(
        row.resource == str(_HOURS),
        row.subject_type == str(kind),
        row.limit_value.is_not(None),
        or_(holds, told),
    )


async def _judge(db: AsyncSession, *, quota_id: int) -> list[tuple[str, str]]:
    """Note where a limit stands and tell people what is new; kind and id of that whose time is over."""
    meter = await _read(db, quota_id=quota_id)
    if meter is None:
        return []
    quota = meter.quota
    if meter.used < meter.limit * await platform_settings.value(db, QUOTA_GPU_HOURS_WARN_PERCENT) / 100:
        await _note(db, meter, warned_at=None, exceeded_at=None)
        return []
    if meter.used < meter.limit:
        if quota.warned_at is None:
            await _tell(db, meter, what="warning", more="At the limit, what holds GPUs is stopped.")
        await _note(db, meter, warned_at=func.coalesce(tables.Quota.warned_at, func.now()), exceeded_at=None)
        return []
    grace = timedelta(seconds=await platform_settings.value(db, QUOTA_GPU_HOURS_GRACE_S))
    holding = await _holding(db, quota=quota)
    if quota.exceeded_at is None and holding:
        ends = refusals.clock(meter.now + grace)
        await _tell(db, meter, what="used_up", more=f"What holds GPUs is stopped at {ends}: save your work.")
        await _note(db, meter, warned_at=func.now(), exceeded_at=func.now())
        return []
    return holding if quota.exceeded_at is not None and quota.exceeded_at + grace <= meter.now else []


async def _read(db: AsyncSession, *, quota_id: int) -> _Meter | None:
    row = tables.Quota
    kind = await db.scalar(select(row.subject_type).where(row.id == quota_id))
    if kind is None:
        return None
    whose = queries.of_subject(queries.EVERY_ALLOCATION, kind) == row.subject_id
    used = queries.gpu_hours(whose, window_s=row.window_s)
    found = (
        await db.execute(
            select(row, queries.effective(), used, func.now())
            .where(row.id == quota_id)
            .with_for_update(of=row)
            .execution_options(populate_existing=True)
        )
    ).one_or_none()
    if found is None or found[1] is None:
        return None
    return _Meter(found[0], found[1], float(found[2]), found[3])


async def _note(db: AsyncSession, meter: _Meter, **values: Any) -> None:
    row = tables.Quota
    await db.execute(
        update(row)
        .where(row.id == meter.quota.id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


async def _holding(db: AsyncSession, *, quota: tables.Quota) -> list[tuple[str, str]]:
    """What of the subject holds GPUs and is not being stopped."""
    held, row, attempt, task = tables.Allocation, tables.Environment, tables.Attempt, tables.Task
    of_subject = queries.of_subject(held, quota.subject_type) == quota.subject_id
    environments = (
        select(row.id)
        .join(held, held.environment_id == row.id)
        .where(of_subject, held.released_at.is_(None), row.desired == "running")
        .distinct()
        .order_by(row.id)
    )
    of_tasks = (
        select(task.id)
        .join(attempt, attempt.task_id == task.id)
        .join(held, held.attempt_id == attempt.id)
        .where(
            of_subject,
            held.released_at.is_(None),
            attempt.finished_at.is_(None),
            task.stop_requested_at.is_(None),
        )
        .distinct()
        .order_by(task.id)
    )
    return [
        *(("environment", one) for one in await db.scalars(environments)),
        *(("task", one) for one in await db.scalars(of_tasks)),
    ]


async def _tell(db: AsyncSession, meter: _Meter, *, what: str, more: str) -> None:
    quota = meter.quota
    held, user = tables.Allocation, tables.User
    holds = exists().where(
        held.user_id == user.id,
        queries.of_subject(held, quota.subject_type) == quota.subject_id,
        held.released_at.is_(None),
    )
    owns = (user.role == "owner") & (user.customer_id == quota.subject_id)
    people = await db.scalars(select(user.id).where(holds | owns | (user.id == quota.subject_id)))
    message = (
        f"{refusals.plain(_HOURS, meter.used)} of {refusals.amount(_HOURS, meter.limit)} in"
        f" {refusals.span(quota.window_s or 0)} are used by this {quota.subject_type}. {more}"
    )
    await notifications.tell(
        db,
        user_ids=people,
        kind=f"quota.gpu_hours_{what}",
        level="warning",
        message=message,
        subject_type="quota",
        subject_id=quota.subject_id,
        data={"subject": quota.subject_type, "limit": meter.limit, "used": round(meter.used, 3)},
    )
    await events.record(
        db,
        kind=f"quota.gpu_hours_{what}",
        subject_type="quota",
        subject_id=quota.subject_id,
        actor=SYSTEM,
        message=message,
        data={"subject": quota.subject_type, "limit": meter.limit, "used": round(meter.used, 3)},
        user_id=quota.subject_id if quota.subject_type == "user" else None,
        workspace_id=quota.subject_id if quota.subject_type == "workspace" else None,
        customer_id=quota.subject_id if quota.subject_type == "customer" else None,
    )


async def _stop(db: AsyncSession, *, environment_id: str) -> None:
    environment = await environments.lock(db, environment_id=environment_id)
    if environment is None or environment.desired != "running":
        return
    await stop.end(
        db, environment=environment, desired="stopped", reason=Reason.QUOTA, message=_USED_UP, actor=SYSTEM
    )
    await notifications.tell(
        db,
        user_ids=[environment.owner_id],
        kind="environment.stopped_by_quota",
        level="warning",
        message=f"{environment.name} was stopped because its GPU-hours are used up.",
        subject_type="environment",
        subject_id=environment.id,
    )


async def lapse_requests(work: Work) -> None:
    """Raised limits whose time is over are what they were."""
    async with work.session() as db:
        ended = await requests.lapse(db)
    if ended:
        _log.info("quota_raises_lapsed", count=ended)


async def apply_policies(work: Work) -> None:
    """What changed without a word to the policies, such as a user's role."""
    async with work.session() as db:
        await policies.apply(db)


GPU_HOURS = Loop(name="gpu-hours", every_s=30.0, run=enforce_gpu_hours)
REQUESTS = Loop(name="quota-requests", every_s=15.0, run=lapse_requests)
POLICIES = Loop(name="quota-policies", every_s=30.0, run=apply_policies)
