"""The health of a host, from its agents, its runtime, its GPUs and its disk."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.hosts import queries


def judge(host: tables.Host, *, gpus: dict[str, int]) -> tuple[str, str | None]:
    """The health and its reason; the worst wins. ``gpus``: how many by health."""
    if host.inventory is None:
        return "unknown", None
    if host.duplicate_since is not None:
        return "faulty", "several agents use its credential; enrol the right one again"
    if not host.runtime_healthy:
        return "faulty", f"its runtime does not work: {host.runtime_detail or 'no detail'}"
    broken = {state: count for state, count in sorted(gpus.items()) if state != "healthy" and count}
    if broken:
        return "degraded", ", ".join(f"{count} GPUs {state}" for state, count in broken.items())
    if host.disk_full:
        return "degraded", "the disk of the homes is nearly full"
    return "healthy", None


async def refresh(db: AsyncSession, *, host_id: str, actor: Actor) -> None:
    """Judge a host anew and say it where it differs. The caller has locked it."""
    row, gpu = tables.Host, tables.Gpu
    host = await db.scalar(select(row).where(row.id == host_id).execution_options(populate_existing=True))
    if host is None:
        return
    counts = await db.execute(
        select(gpu.health, func.count()).where(gpu.host_id == host_id).group_by(gpu.health)
    )
    health, reason = judge(host, gpus={str(state): int(count) for state, count in counts})
    if (health, reason) == (host.health, host.health_reason):
        return
    before = host.health
    await queries.change(db, host, health=health, health_reason=reason)
    if health == before:
        return
    await events.record(
        db,
        kind="host.health",
        subject_type="host",
        subject_id=host_id,
        actor=actor,
        reason=reason,
        message=f"Host {host.name} is {health}{': ' + reason if reason else ''}.",
        data={"from": before, "to": health},
    )
    notify(db, "queue")
