"""GPUs, and who holds them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from remotegpu.types.hosts import Gpu, GpuHealth, GpuMetrics
from remotegpu.types.wire import Page
from remotegpu_server import authz, pagination
from remotegpu_server.authz import Action, Actor
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import samples, tables


async def list_gpus(
    db: AsyncSession,
    *,
    actor: Actor,
    host: str | None,
    model: str | None,
    free: bool | None,
    limit: int,
    cursor: str | None,
    gpu_id: str | None = None,
) -> Page[Gpu]:
    """By host and index. Holders are named only to themselves, the owners of their customer, and admins."""
    authz.require(actor, Action.GPU_READ)
    gpu, owner, held = tables.Gpu, tables.Host, aliased(tables.Allocation)
    position = (owner.name, gpu.index, gpu.id)
    share = tables.Allocation
    shares = (
        select(share.gpu_id, func.count().label("count"), func.sum(share.memory_bytes).label("memory_bytes"))
        .where(share.released_at.is_(None), share.memory_bytes.is_not(None))
        .group_by(share.gpu_id)
        .subquery()
    )
    attempt = tables.Attempt
    found = (
        select(
            gpu,
            owner,
            held,
            attempt.task_id,
            tables.User,
            shares.c.count,
            shares.c.memory_bytes,
            capacity.returns(),
        )
        .join(owner, owner.id == gpu.host_id)
        .outerjoin(held, (held.gpu_id == gpu.id) & held.released_at.is_(None) & held.memory_bytes.is_(None))
        .outerjoin(attempt, attempt.id == held.attempt_id)
        .outerjoin(shares, shares.c.gpu_id == gpu.id)
        .outerjoin(tables.User, tables.User.id == held.user_id)
        .order_by(*position)
        .limit(limit + 1)
    )
    if host is not None:
        found = found.where((owner.id == host) | (owner.name == host))
    if gpu_id is not None:
        found = found.where(gpu.id == gpu_id)
    if model is not None:
        found = found.where(gpu.model == model)
    if free is not None:
        takes_work = (
            held.id.is_(None)
            & shares.c.gpu_id.is_(None)
            & ~gpu.mig_enabled
            & (gpu.health == "healthy")
            & capacity.takes_work()
        )
        found = found.where(takes_work if free else ~takes_work)
    if cursor is not None:
        found = found.where(pagination.after(position, cursor))
    rows = (await db.execute(found)).all()
    measured = await samples.newest(db, host_ids=sorted({row[1].id for row in rows}))
    return Page[Gpu](
        items=[_to_wire(actor, *row, sample=measured.get(row[1].id)) for row in rows[:limit]],
        next_cursor=_cursor(*rows[limit - 1][:2]) if len(rows) > limit else None,
    )


async def get_gpu(db: AsyncSession, *, actor: Actor, gpu_id: str) -> Gpu:
    """One that is known to be there."""
    page = await list_gpus(
        db, actor=actor, host=None, model=None, free=None, limit=1, cursor=None, gpu_id=gpu_id
    )
    return page.items[0]


def _cursor(gpu: tables.Gpu, owner: tables.Host) -> str:
    return pagination.encode([owner.name, gpu.index, gpu.id])


def _to_wire(
    actor: Actor,
    row: tables.Gpu,
    host: tables.Host,
    held: tables.Allocation | None,
    task_id: str | None,
    holder: tables.User | None,
    shares: int | None,
    shared_bytes: int | None,
    returning: bool,
    *,
    sample: samples.Sample | None,
) -> Gpu:
    shown = held is not None and authz.may(
        actor, Action.ENVIRONMENT_READ, user_id=held.user_id, customer_id=held.customer_id
    )
    metrics: dict[str, Any] | None = sample.gpus.get(row.uuid) if sample else None
    return Gpu(
        id=row.id,
        host_id=row.host_id,
        host_name=host.name,
        uuid=row.uuid,
        index=row.index,
        model=row.model,
        product=row.product,
        memory_total_bytes=row.memory_total_bytes,
        memory_free_bytes=0 if held or row.mig_enabled else row.memory_total_bytes - int(shared_bytes or 0),
        shares=shares or 0,
        mig_profile=row.mig_profile,
        parent_uuid=row.parent_uuid,
        mig_enabled=row.mig_enabled,
        numa_node=row.numa_node,
        nvlink_group=row.nvlink_group,
        simulated=row.simulated,
        health=GpuHealth(row.health),
        health_reason=row.health_reason,
        health_since=row.health_since,
        free=held is None
        and not shares
        and not row.mig_enabled
        and row.health == "healthy"
        and capacity.not_ready_reason(host, returning=returning) is None,
        allocation_id=held.id if held and shown else None,
        environment_id=held.environment_id if held and shown else None,
        task_id=task_id if shown else None,
        holder=holder.username if holder and shown else None,
        metrics=GpuMetrics.model_validate(samples.shown(metrics)) if metrics is not None else None,
        sampled_at=sample.at if sample and metrics is not None else None,
    )
