"""Unused environments: what was measured of them, and the ladder notice, warning, stop.

Nothing is stopped on a guess: an environment counts as unused only while every signal that its policy asks
for was measured and is quiet. A value that is missing counts as use.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.environments import IdlePolicy, Reason
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import samples, tables
from remotegpu_server.environments import lifecycle, queries
from remotegpu_server.environments.service import stop
from remotegpu_server.environments.service.stop_times import NOT_IDLE
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import ENVIRONMENT_IDLE_GRACE_S

WINDOW_S = 60.0
"""What heartbeats measured in this time is looked at: a short burst between two looks is seen too."""
CPU_BUSY_PERCENT = 10.0
"""Of one CPU. More is a program that works, although no notebook server says so."""

_MEASURED = text(
    f"""
    SELECT e.id, e.gpus, e.idle_policy, e.idle_since, e.idle_stage, e.idle_stop_at, now() AS now,
           gpu.unknown AS gpu_unknown, gpu.percent AS gpu_percent, own.*
    FROM environments e
    JOIN placements p ON p.environment_id = e.id AND p.released_at IS NULL
    JOIN hosts h ON h.id = p.host_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS samples,
               bool_or(s.workloads -> e.id ->> 'cpu_percent' IS NULL) AS cpu_unknown,
               max((s.workloads -> e.id ->> 'cpu_percent')::float) AS cpu_percent,
               bool_or(s.workloads -> e.id ->> 'connections' IS NULL) AS connections_unknown,
               max((s.workloads -> e.id ->> 'connections')::int) AS connections,
               min((s.workloads -> e.id ->> 'kernel_idle_s')::float) AS kernel_idle_s
        FROM host_samples s
        WHERE s.host_id = p.host_id AND s.at > greatest(now() - interval '{WINDOW_S} s', e.started_at)
          AND h.connection = 'online'
    ) own
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE seen.percent IS NULL) AS unknown, max(seen.percent) AS percent
        FROM allocations a JOIN gpus g ON g.id = a.gpu_id
        JOIN host_samples s ON s.host_id = p.host_id AND s.at > now() - interval '{WINDOW_S} s'
        CROSS JOIN LATERAL (
            SELECT greatest((s.gpus -> g.uuid ->> 'utilization_percent')::float,
                            (s.gpus -> g.uuid ->> 'utilization_max_percent')::float) AS percent
        ) seen
        WHERE a.placement_id = p.id AND a.released_at IS NULL
    ) gpu
    WHERE e.status = 'running' AND e.idle_policy IS NOT NULL
    ORDER BY e.id
    """  # noqa: S608  a constant of this module
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the last minute showed of one environment. ``None``: not measured."""

    gpus: int
    gpu_percent: float | None
    cpu_percent: float | None
    connections: int | None
    kernel_idle_s: float | None


@dataclass(frozen=True, kw_only=True)
class Look:
    """One environment at one pass."""

    environment_id: str
    now: datetime
    policy: IdlePolicy
    measured: Measured
    idle_since: datetime | None
    stage: str | None
    stop_at: datetime | None


def in_use(policy: IdlePolicy, measured: Measured) -> bool | None:
    """Whether anything uses it; ``None`` where a signal is missing and no other one says yes."""
    signals = [None if measured.cpu_percent is None else measured.cpu_percent >= CPU_BUSY_PERCENT]
    if measured.gpus:
        busy = measured.gpu_percent
        signals.append(None if busy is None else busy >= policy.gpu_below_percent)
    if measured.kernel_idle_s is not None:
        signals.append(measured.kernel_idle_s < WINDOW_S)
    if policy.count_connections:
        signals.append(None if measured.connections is None else measured.connections > 0)
    if any(signals):
        return True
    return None if None in signals else False


async def look(db: AsyncSession) -> list[Look]:
    """Every running environment that has an idle policy, in one query."""
    await samples.of(db).write()
    found = []
    for row in await db.execute(_MEASURED):
        known = row.samples > 0 and row.gpu_unknown == 0
        found.append(
            Look(
                environment_id=row.id,
                now=row.now,
                policy=IdlePolicy.model_validate(row.idle_policy),
                measured=Measured(
                    gpus=row.gpus,
                    gpu_percent=row.gpu_percent if known else None,
                    cpu_percent=None if row.cpu_unknown else row.cpu_percent,
                    connections=None if row.connections_unknown else row.connections,
                    kernel_idle_s=row.kernel_idle_s,
                ),
                idle_since=row.idle_since,
                stage=row.idle_stage,
                stop_at=row.idle_stop_at,
            )
        )
    return found


def next_step(seen: Look) -> str | None:
    """``used``, ``unused``, ``notice``, ``warn``, ``stop``, or nothing to do."""
    if in_use(seen.policy, seen.measured) is not False:
        return "used" if seen.idle_since is not None else None
    if seen.idle_since is None:
        return "unused"
    unused_s = (seen.now - seen.idle_since).total_seconds()
    if seen.stage == "warned":
        return "stop" if seen.stop_at is not None and seen.now >= seen.stop_at else None
    if unused_s >= seen.policy.after_s:
        return "warn"
    return "notice" if seen.stage is None and unused_s >= seen.policy.after_s / 2 else None


async def take_step(db: AsyncSession, *, seen: Look, step: str) -> None:
    """Do it, unless the environment changed since it was looked at: an extension, a restart, a stop."""
    environment = await queries.lock(db, environment_id=seen.environment_id)
    if environment is None or (environment.status, environment.desired) != ("running", "running"):
        return
    if (environment.idle_since, environment.idle_stage) != (seen.idle_since, seen.stage):
        return
    if step == "used":
        await _used(db, environment=environment)
    elif step == "unused":
        await queries.store(db, environment, idle_since=func.now())
    elif step == "stop":
        await _stop(db, environment=environment, seen=seen)
    else:
        await _announce(db, environment=environment, seen=seen, warning=step == "warn")


async def _used(db: AsyncSession, *, environment: tables.Environment) -> None:
    announced = environment.idle_stage is not None
    environment = await queries.store(db, environment, **NOT_IDLE)
    if announced:
        await lifecycle.tell_owner(
            db,
            environment=environment,
            kind="environment.in_use",
            reason=Reason.IDLE,
            level="info",
            message=f"{environment.name} is in use again, or that cannot be measured; it is not stopped.",
            data={},
            actor=SYSTEM,
        )


async def _announce(db: AsyncSession, *, environment: tables.Environment, seen: Look, warning: bool) -> None:
    grace = timedelta(seconds=await platform_settings.value(db, ENVIRONMENT_IDLE_GRACE_S))
    now = await queries.now(db)
    stop_at = now + grace if warning else None
    await queries.store(db, environment, idle_stage="warned" if warning else "notice", idle_stop_at=stop_at)
    minutes = round((now - (seen.idle_since or now)).total_seconds() / 60)
    then = (
        f"It stops at {stop_at:%Y-%m-%d %H:%M} UTC; `remotegpu env extend {environment.name}` keeps it."
        if stop_at is not None
        else f"It will be stopped when that goes on for {seen.policy.after_s / 60:.0f} minutes."
    )
    await lifecycle.tell_owner(
        db,
        environment=environment,
        kind="environment.idle_warning" if warning else "environment.idle_notice",
        reason=Reason.IDLE,
        level="warning" if warning else "info",
        message=f"Nobody has used {environment.name} for {minutes} minutes. {then}",
        data={"idle_since": (seen.idle_since or now).isoformat()}
        | ({"stops_at": stop_at.isoformat()} if stop_at is not None else {}),
        actor=SYSTEM,
    )


async def _stop(db: AsyncSession, *, environment: tables.Environment, seen: Look) -> None:
    await stop.end_by_itself(
        db,
        environment=environment,
        reason=Reason.IDLE,
        message=f"{environment.name} was stopped: nobody used it since {seen.idle_since:%Y-%m-%d %H:%M} UTC. "
        "Its files are kept.",
    )
