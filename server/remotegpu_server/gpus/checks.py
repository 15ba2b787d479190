"""The ways back into placement for a GPU that was taken out."""

from __future__ import annotations

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, NotFound, StateConflict
from remotegpu.types.agent import GpuCheckAnswer, GpuCheckRequest
from remotegpu.types.hosts import Gpu, GpuCheck, GpuRestore
from remotegpu_server import authz, holds
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.gpus import health, service
from remotegpu_server.hosts.service import health as host_health


async def _locked(db: AsyncSession, gpu: str) -> tables.Gpu:
    """By id or UUID; its host is locked before it, as everywhere."""
    row = tables.Gpu
    host_id = await db.scalar(select(row.host_id).where((row.id == gpu) | (row.uuid == gpu)))
    if host_id is None:
        raise NotFound("There is no such GPU.")
    await db.execute(select(tables.Host.id).where(tables.Host.id == host_id).with_for_update(key_share=True))
    found: tables.Gpu | None = await db.scalar(
        select(row)
        .where((row.id == gpu) | (row.uuid == gpu))
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    assert found is not None, "GPU rows are never deleted while their host is locked"
    return found


async def request_check(db: AsyncSession, *, actor: Actor, gpu: str) -> GpuCheck:
    """Ask the GPU's agent for a self-test; one at a time. Passed, it puts an unhealthy GPU back."""
    authz.require(actor, Action.HOST_WRITE)
    found = await _locked(db, gpu)
    if found.health == "missing":
        raise StateConflict("The GPU is missing: there is nothing to check.", hint="Reboot its host first.")
    row = tables.GpuCheck
    try:
        async with db.begin_nested():
            made = await db.scalar(
                insert(row)
                .values(
                    id=tables.new_id("chk"), gpu_id=found.id, host_id=found.host_id, requested_by=actor.name
                )
                .returning(row)
            )
    except IntegrityError:
        made = await db.scalar(select(row).where(row.gpu_id == found.id, row.answered_at.is_(None)))
    assert made is not None
    await holds.bump_revision(db, host_id=found.host_id)
    audit.note(db, check=made.id)
    return GpuCheck(id=made.id, gpu_id=made.gpu_id, requested_at=made.requested_at)


async def restore(db: AsyncSession, *, actor: Actor, gpu: str, body: GpuRestore) -> Gpu:
    """An admin's word that it takes work again; the reason it was out for is accepted from now on."""
    authz.require(actor, Action.HOST_WRITE)
    found = await _locked(db, gpu)
    if found.health == "missing":
        raise StateConflict("The GPU is missing: it comes back with its agent's next inventory.")
    if found.health != "healthy":
        audit.note(db, old={"health": found.health, "reason": found.health_reason}, new={"health": "healthy"})
        await _put_back(db, found, actor=actor)
    return await service.get_gpu(db, actor=actor, gpu_id=found.id)


async def _put_back(db: AsyncSession, gpu: tables.Gpu, *, actor: Actor) -> None:
    await health.mark(
        db, gpu_ids=[gpu.id], health="healthy", reason=None, actor=actor, accepted_reason=gpu.health_reason
    )
    await host_health.refresh(db, host_id=gpu.host_id, actor=actor)


async def open_checks(db: AsyncSession, *, host_id: str) -> list[GpuCheckRequest]:
    """What a host's agent still has to answer."""
    row, gpu = tables.GpuCheck, tables.Gpu
    rows = await db.execute(
        select(row.id, gpu.uuid)
        .join(gpu, gpu.id == row.gpu_id)
        .where(row.host_id == host_id, row.answered_at.is_(None))
        .order_by(row.requested_at, row.id)
    )
    return [GpuCheckRequest(id=check_id, gpu_uuid=uuid) for check_id, uuid in rows]


async def answer(
    db: AsyncSession, *, actor: Actor, host: tables.Host, check_id: str, body: GpuCheckAnswer
) -> None:
    """Take over a result; a second answer changes nothing. The caller has fenced the agent's session."""
    row = tables.GpuCheck
    check = await db.scalar(select(row).where(row.id == check_id))
    if check is None:
        raise NotFound("There is no such check.")
    if check.host_id != host.id:
        raise Forbidden("This check is another host's.")
    changed = await db.scalar(
        update(row)
        .where(row.id == check_id, row.answered_at.is_(None))
        .values(answered_at=func.now(), passed=body.passed, detail=body.detail)
        .returning(row.gpu_id)
        .execution_options(synchronize_session=False)
    )
    if changed is None:
        return
    gpu = await _locked(db, changed)
    if body.passed and gpu.health == "unhealthy":
        await _put_back(db, gpu, actor=actor)
    elif not body.passed:
        evidence = {"check": body.detail}
        await health.mark(
            db,
            gpu_ids=[gpu.id],
            health="unhealthy",
            reason=f"the check failed: {body.detail}"[:256],
            actor=actor,
            evidence=evidence,
        )
        await host_health.refresh(db, host_id=host.id, actor=actor)
