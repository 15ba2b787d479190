"""What was measured over a time, of whatever a person may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NotFound
from remotegpu.types.metrics import MetricOf, MetricPoint, MetricsReport, Resolution, ScrapeTarget
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.customers import service as customers
from remotegpu_server.db import samples, tables
from remotegpu_server.environments.service import read as environments
from remotegpu_server.hosts.service import entries as hosts
from remotegpu_server.metrics import queries
from remotegpu_server.metrics.queries import Span, Window
from remotegpu_server.tasks.service import read as tasks
from remotegpu_server.workspaces import service as workspaces

MOST_POINTS = 50_000
MOST_SPANS = 10_000
DEFAULT_S = 3600
LONGEST = timedelta(days=366)
STEPS_S = (10, 30, 60, 300, 900, 3600, 6 * 3600, 86400)
"""Without a step the first of these that makes at most so many steps:"""
STEPS = 240
_TAIL = timedelta(minutes=5)
"""The last minutes are read from samples: the roll-up may be that far behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a caller wants to see: left out, the last hour, in steps that fit, everything."""

    begin: datetime | None
    end: datetime | None
    step_s: int | None
    metrics: Sequence[str]


async def of_host(db: AsyncSession, *, actor: Actor, host: str, asked: Asked) -> MetricsReport:
    """A host and each of its GPUs."""
    found = await hosts.get_host(db, actor=actor, host=host)
    return await _report(db, spans=await queries.spans_of_host(db, host_id=found.id, uuid=None), asked=asked)


async def of_gpu(db: AsyncSession, *, actor: Actor, gpu: str, asked: Asked) -> MetricsReport:
    """One GPU, by id or UUID, whoever held it: how busy others are is not everybody's to see."""
    authz.require(actor, Action.HOST_READ)
    row = tables.Gpu
    found = (
        await db.execute(select(row.host_id, row.uuid).where((row.id == gpu) | (row.uuid == gpu)))
    ).one_or_none()
    if found is None:
        raise NotFound("There is no such GPU.")
    spans = await queries.spans_of_host(db, host_id=found.host_id, uuid=found.uuid)
    return await _report(db, spans=spans, asked=asked)


async def of_environment(
    db: AsyncSession, *, actor: Actor, environment_id: str, asked: Asked
) -> MetricsReport:
    """An environment, and the GPUs that it held while it held them, over all its starts."""
    await environments.visible(
        db, actor=actor, action=Action.ENVIRONMENT_USAGE, environment_id=environment_id
    )
    return await _held(db, subject="environment", subject_id=environment_id, asked=asked)


async def of_task(db: AsyncSession, *, actor: Actor, task_id: str, asked: Asked) -> MetricsReport:
    """A task, over all its attempts, and the GPUs that they held."""
    await tasks.visible(db, actor=actor, action=Action.TASK_READ, task_id=task_id)
    return await _held(db, subject="task", subject_id=task_id, asked=asked)


async def of_workspace(db: AsyncSession, *, actor: Actor, workspace_id: str, asked: Asked) -> MetricsReport:
    """All that ran in a workspace, together."""
    found = await workspaces.get_workspace(db, actor=actor, workspace_id=workspace_id)
    return await _held(db, subject="workspace", subject_id=found.id, asked=asked, together=True)


async def of_customer(db: AsyncSession, *, actor: Actor, customer: str, asked: Asked) -> MetricsReport:
    """All that ran for a customer, together."""
    found = await customers.get_customer(db, actor, customer)
    return await _held(db, subject="customer", subject_id=found.id, asked=asked, together=True)


async def scrape_targets(db: AsyncSession, *, actor: Actor) -> list[ScrapeTarget]:
    """Every host that says where its ``/metrics`` is, silent ones too: a scrape that fails is news."""
    authz.require(actor, Action.METRICS_READ)
    row = tables.Host
    address = row.inventory["metrics_address"].astext
    found = await db.execute(
        select(row.name, address)
        .where(address.is_not(None), row.operational.not_in(["retired", "maintenance"]))
        .order_by(row.name)
    )
    return [ScrapeTarget(targets=[where], labels={"host": name}) for name, where in found]


async def _held(
    db: AsyncSession, *, subject: str, subject_id: str, asked: Asked, together: bool = False
) -> MetricsReport:
    now = (await db.execute(select(func.now()))).scalar_one()
    window = _window(asked, now=now)
    spans = await queries.spans_of(
        db,
        subject=subject,
        subject_id=subject_id,
        begin=window.begin,
        end=window.end,
        most=MOST_SPANS + 1,
    )
    if len(spans) > MOST_SPANS:
        raise Invalid(f"More than {MOST_SPANS} starts ran in this time.", hint="Ask for a shorter time.")
    return await _report(db, spans=spans, asked=asked, together=together)


async def _report(
    db: AsyncSession, *, spans: Sequence[Span], asked: Asked, together: bool = False
) -> MetricsReport:
    await samples.of(db).write()
    # The clock of the wall, not of the transaction: what was written just now is to be seen.
    now = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    window = _window(asked, now=now)
    minute = now.replace(second=0, microsecond=0)
    found = await queries.series(
        db,
        spans=spans,
        window=window,
        metrics=asked.metrics,
        together=together,
        minutes_until=minute - _TAIL,
        hours_until=minute.replace(minute=0) - timedelta(hours=1),
        most=MOST_POINTS + 1,
    )
    if len(found) > MOST_POINTS:
        raise Invalid(
            f"The answer has more than {MOST_POINTS} points.",
            hint="Ask for a shorter time, a longer step, or name the metrics.",
        )
    return MetricsReport(
        begin_at=window.begin,
        end_at=window.end,
        step_s=int(window.step.total_seconds()),
        resolution=window.resolution,
        points=[MetricPoint(**(row | {"of": MetricOf(row["of"])})) for row in found],
    )


def _window(asked: Asked, *, now: datetime) -> Window:
    """Out of the finest table that still has the begin, and whose steps are not finer than asked for."""
    end = min(asked.end or now, now).astimezone(UTC)
    begin = (asked.begin or end - timedelta(seconds=DEFAULT_S)).astimezone(UTC)
    if not begin < end:
        raise Invalid("`from` must be before `to`, and not in the future.")
    if end - begin > LONGEST:
        raise Invalid(f"At most {LONGEST.days} days can be asked for at once.")
    length_s = (end - begin).total_seconds()
    step_s = asked.step_s or next((one for one in STEPS_S if length_s / one <= STEPS), STEPS_S[-1])
    resolution = Resolution.SAMPLES
    if step_s >= 60 or begin < now - queries.TABLES[Resolution.SAMPLES].kept:
        resolution, step_s = Resolution.MINUTES, max(step_s, 60)
    if step_s >= 3600 or begin < now - queries.TABLES[Resolution.MINUTES].kept:
        resolution, step_s = Resolution.HOURS, max(step_s, 3600)
    if resolution is not Resolution.SAMPLES:
        begin = begin.replace(second=0, microsecond=0)
    return Window(begin=begin, end=end, step=timedelta(seconds=step_s), resolution=resolution)
