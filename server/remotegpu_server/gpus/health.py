"""Taking sick GPUs out of placement, and the two ways back: a passed check, or an admin's word.

A heartbeat can take a GPU out and never puts one back. A reason that was answered by a check or an admin is
``accepted``: the agent may go on saying it (a driver's counter does not go down), only another one counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.agent import HeartbeatGpu
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.notifications import service as notifications
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import GPU_MAX_TEMPERATURE_C

MISSING = "not in the last inventory"
RETURNED = "it was missing before, and needs a check"

_TAKE_OUT = text("""
    UPDATE gpus SET health = 'unhealthy', health_reason = seen.reason, health_since = now(),
        evidence = CAST(seen.evidence AS jsonb), accepted_reason = NULL
    FROM unnest(CAST(:uuids AS text[]), CAST(:reasons AS text[]), CAST(:evidence AS text[]))
        AS seen (uuid, reason, evidence)
    WHERE gpus.host_id = :host_id AND gpus.uuid = seen.uuid AND gpus.health = 'healthy'
      AND gpus.accepted_reason IS DISTINCT FROM seen.reason
    RETURNING gpus.id
""")


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a GPU must not take work."""

    uuid: str
    reason: str
    evidence: dict[str, Any]


async def judge(db: AsyncSession, *, gpus: Sequence[HeartbeatGpu]) -> list[Finding]:
    """What is wrong with the GPUs of a heartbeat: what their agent says, else their temperature."""
    hottest = max((gpu.metrics.temperature_c or 0.0 for gpu in gpus), default=0.0)
    limit = GPU_MAX_TEMPERATURE_C.minimum or 0.0
    if hottest > limit:  # the setting is read only where it can matter: heartbeats are many
        limit = await platform_settings.value(db, GPU_MAX_TEMPERATURE_C)
    found = []
    for gpu in gpus:
        reason = gpu.unhealthy_reason
        if reason is None and (gpu.metrics.temperature_c or 0.0) > limit and hottest > limit:
            reason = f"hotter than {limit:g} °C"
        if reason is not None:
            evidence = gpu.metrics.model_dump(mode="json", exclude_none=True)
            found.append(Finding(gpu.uuid, reason, evidence))
    return found


async def take_out(db: AsyncSession, *, actor: Actor, host_id: str, gpus: Sequence[HeartbeatGpu]) -> bool:
    """Take the GPUs out that a heartbeat shows to be sick; True when any was in before."""
    findings = await judge(db, gpus=gpus)
    if not findings:
        return False
    rows = await db.scalars(
        _TAKE_OUT,
        {
            "host_id": host_id,
            "uuids": [one.uuid for one in findings],
            "reasons": [one.reason for one in findings],
            "evidence": [json.dumps(one.evidence) for one in findings],
        },
    )
    taken = list(rows)
    for gpu_id in taken:
        await say(db, gpu_id=gpu_id, actor=actor)
    return bool(taken)


async def mark(
    db: AsyncSession, *, gpu_ids: Sequence[str], health: str, reason: str | None, actor: Actor, **values: Any
) -> None:
    """Set the health of locked GPUs, and tell who holds them."""
    row = tables.Gpu
    await db.execute(
        update(row)
        .where(row.id.in_(gpu_ids))
        .values(health=health, health_reason=reason, health_since=func.now(), **values)
        .execution_options(synchronize_session=False)
    )
    for gpu_id in gpu_ids:
        await say(db, gpu_id=gpu_id, actor=actor)


async def say(db: AsyncSession, *, gpu_id: str, actor: Actor) -> None:
    """The event of a GPU's health, and a notification to its holders; admins are told by an alert."""
    row, host, held = tables.Gpu, tables.Host, tables.Allocation
    gpu, host_name = (
        await db.execute(
            select(row, host.name)
            .join(host, host.id == row.host_id)
            .where(row.id == gpu_id)
            .execution_options(populate_existing=True)
        )
    ).one()
    attempt = tables.Attempt
    holders = (
        await db.execute(
            select(held.user_id, held.environment_id, attempt.task_id)
            .outerjoin(attempt, attempt.id == held.attempt_id)
            .where(held.gpu_id == gpu_id, held.released_at.is_(None))
        )
    ).all()
    why = f": {gpu.health_reason}" if gpu.health_reason else ""
    message = f"GPU {gpu.index} ({gpu.model}) of {host_name} is {gpu.health}{why}."
    data = {
        "host_id": gpu.host_id,
        "uuid": gpu.uuid,
        "health": gpu.health,
        "environments": [holder.environment_id for holder in holders if holder.environment_id],
        "tasks": [holder.task_id for holder in holders if holder.task_id],
    }
    await events.record(
        db,
        kind="gpu.health",
        subject_type="gpu",
        subject_id=gpu_id,
        actor=actor,
        reason=gpu.health_reason,
        message=message,
        data=data | {"evidence": gpu.evidence},
    )
    notify(db, "queue")
    await notifications.tell(
        db,
        user_ids={holder.user_id for holder in holders},
        kind="gpu.health",
        level="info" if gpu.health == "healthy" else "error",
        message=message,
        subject_type="gpu",
        subject_id=gpu_id,
        data=data,
    )
