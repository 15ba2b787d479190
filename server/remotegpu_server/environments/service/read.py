"""Reading environments: lists, one, what it uses, what it prints."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import NotFound, Unavailable
from remotegpu.types.environments import (
    Environment,
    EnvironmentLogs,
    EnvironmentStatus,
    EnvironmentUsage,
    GpuSample,
    GpuUsage,
)
from remotegpu.types.hosts import GpuMetrics
from remotegpu.types.wire import Page
from remotegpu_server import authz, holds
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import samples, tables
from remotegpu_server.db.notify import Signals, Watch
from remotegpu_server.environments import convert, lifecycle, queries

LOG_WAIT_S = 10.0
LOG_RECHECK_S = 1.0
HISTORY = timedelta(minutes=10)


async def list_environments(
    db: AsyncSession,
    *,
    actor: Actor,
    owner: str | None,
    name: str | None,
    workspace: str | None,
    statuses: list[EnvironmentStatus],
    limit: int,
    cursor: str | None,
) -> Page[Environment]:
    """Newest first; deleted ones only when asked for."""
    authz.require(actor, Action.ENVIRONMENT_LIST)
    row = tables.Environment
    sees = authz.visibility(actor)
    found = select(row.id).order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1)
    if not sees.everything:
        visible_rows: ColumnElement[bool] = row.workspace_id.in_(sees.workspace_ids)
        if sees.customer_id is not None:
            visible_rows |= row.customer_id == sees.customer_id
        found = found.where(visible_rows)
    if workspace is not None:
        found = found.where(row.workspace_id == workspace)
    if owner is not None:
        users = tables.User
        found = found.join(users, users.id == row.owner_id).where(
            (users.username == owner) | (users.id == owner)
        )
    if name is not None:
        found = found.where(row.name == name)
    if statuses:
        found = found.where(row.status.in_([str(status) for status in statuses]))
    else:
        found = found.where(row.status != "deleted")
    if cursor is not None:
        last = select(row.created_at, row.id).where(row.id == cursor).subquery()
        found = found.where(
            (row.created_at < select(last.c.created_at).scalar_subquery())
            | ((row.created_at == select(last.c.created_at).scalar_subquery()) & (row.id < cursor))
        )
    ids = list((await db.scalars(found)).all())
    items = [convert.to_wire(bundle) for bundle in await queries.bundles(db, ids=ids[:limit])]
    return Page[Environment](items=items, next_cursor=ids[limit - 1] if len(ids) > limit else None)


async def get_environment(db: AsyncSession, *, actor: Actor, environment_id: str) -> Environment:
    """One environment; 404 when it is another tenant's."""
    bundle = await visible(db, actor=actor, action=Action.ENVIRONMENT_READ, environment_id=environment_id)
    if _is_foreign(actor, bundle):
        audit.note(db, read="environment")
    return convert.to_wire(bundle)


async def visible(db: AsyncSession, *, actor: Actor, action: Action, environment_id: str) -> queries.Bundle:
    """The environment, if the actor may do ``action`` with it."""
    found = await queries.bundles(db, ids=[environment_id])
    if not found:
        raise NotFound("There is no such environment.")
    environment = found[0].environment
    authz.require(
        actor,
        action,
        user_id=environment.owner_id,
        customer_id=environment.customer_id,
        workspace_id=environment.workspace_id,
        environment_id=environment.id,
        noun="environment",
    )
    return found[0]


def _is_foreign(actor: Actor, bundle: queries.Bundle) -> bool:
    """An admin looks at what somebody else made, which is recorded."""
    return actor.is_admin and bundle.environment.workspace_id not in actor.workspaces


async def get_usage(db: AsyncSession, *, actor: Actor, environment_id: str) -> EnvironmentUsage:
    """What its host's agent measured: now, and over the last minutes."""
    bundle = await visible(db, actor=actor, action=Action.ENVIRONMENT_USAGE, environment_id=environment_id)
    history: list[tables.HostSample] = []
    if bundle.placement is not None:
        await samples.of(db).write()
        since = func.greatest(func.now() - HISTORY, bundle.placement.placed_at)
        sample = tables.HostSample
        found = select(sample).where(sample.host_id == bundle.placement.host_id, sample.at >= since)
        history = list((await db.scalars(found.order_by(sample.at))).all())
    current = bundle.host is not None and not await lifecycle.host_is_silent(db, host_id=bundle.host.id)
    newest = history[-1] if history and current else None
    mine: dict[str, Any] = newest.workloads.get(environment_id, {}) if newest else {}
    return EnvironmentUsage(
        environment_id=environment_id,
        sampled_at=newest.at if newest else None,
        gpus=[_gpu_usage(held.gpu, history, newest, mine) for held in bundle.gpus],
        cpu_percent=mine.get("cpu_percent"),
        memory_used_bytes=mine.get("memory_used_bytes"),
        memory_limit_bytes=bundle.environment.memory_bytes,
        started_at=bundle.environment.started_at,
    )


def _gpu_usage(
    gpu: tables.Gpu, history: list[tables.HostSample], newest: tables.HostSample | None, mine: dict[str, Any]
) -> GpuUsage:
    now = newest.gpus.get(gpu.uuid) if newest else None
    held = mine.get("gpu_memory_bytes") or {}
    return GpuUsage(
        uuid=gpu.uuid,
        model=gpu.model,
        simulated=gpu.simulated,
        memory_total_bytes=gpu.memory_total_bytes,
        now=GpuMetrics.model_validate(samples.shown(now)) if now is not None else None,
        workload_memory_bytes=held.get(gpu.uuid),
        history=[_point(sample.at, sample.gpus[gpu.uuid]) for sample in history if gpu.uuid in sample.gpus],
    )


def _point(at: datetime, metrics: dict[str, Any]) -> GpuSample:
    return GpuSample(
        at=at,
        utilization_percent=metrics.get("utilization_percent"),
        memory_used_bytes=metrics.get("memory_used_bytes"),
    )


async def get_logs(
    sessions: async_sessionmaker[AsyncSession],
    *,
    signals: Signals,
    actor: Actor,
    environment_id: str,
    tail_lines: int,
    wait_s: float = LOG_WAIT_S,
) -> EnvironmentLogs:
    """The newest output, fetched from the host; what was kept of it when the container is gone.

    Raises :class:`Unavailable` when the host does not answer in time. Holds no connection meanwhile.
    """
    async with sessions() as db:
        bundle = await visible(db, actor=actor, action=Action.ENVIRONMENT_LOGS, environment_id=environment_id)
        environment, host = bundle.environment, bundle.host
        if _is_foreign(actor, bundle):
            audit.note_detached(read="environment_logs")
        if host is None or environment.observed in ("absent", "pulling", "creating"):
            return _kept(environment, tail_lines)
        if host.connection != "online":
            raise Unavailable(
                f"Host {host.name} is silent; its output cannot be read now.",
                hint="The environment is presumed alive. Try again when the host is back.",
            )
        request_id = tables.new_id("log")
        await db.execute(
            insert(tables.LogRequest).values(
                id=request_id, host_id=host.id, environment_id=environment_id, tail_lines=tail_lines
            )
        )
        await holds.bump_revision(db, host_id=host.id)
        with signals.watch(f"log-request:{request_id}") as watch:
            await db.commit()
            await db.close()
            answer = await _answered(sessions, watch=watch, request_id=request_id, wait_s=wait_s)
    if answer is None:
        raise Unavailable(f"Host {host.name} did not send the output within {wait_s:g} seconds.")
    return EnvironmentLogs(text=answer.text or "", truncated=bool(answer.truncated), live=True)


def _kept(environment: tables.Environment, tail_lines: int) -> EnvironmentLogs:
    lines = (environment.log_tail or "").splitlines(keepends=True)
    return EnvironmentLogs(text="".join(lines[-tail_lines:]), truncated=len(lines) > tail_lines, live=False)


async def _answered(
    sessions: async_sessionmaker[AsyncSession], *, watch: Watch, request_id: str, wait_s: float
) -> tables.LogRequest | None:
    ends = time.monotonic() + wait_s
    row = tables.LogRequest
    while True:
        async with sessions() as db:
            answer = await db.scalar(select(row).where(row.id == request_id, row.answered_at.is_not(None)))
        left = ends - time.monotonic()
        if answer is not None or left <= 0:
            return answer
        await watch.wait(min(LOG_RECHECK_S, left))
