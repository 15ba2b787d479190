"""The agent protocol: joining, sessions, reports. Every write is fenced by the session epoch."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from prometheus_client import Counter
from sqlalchemy import BigInteger, bindparam, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Text

from remotegpu.errors import (
    EnrollmentTokenUsed,
    Forbidden,
    GenerationStale,
    NotFound,
    StateConflict,
)
from remotegpu.types.agent import (
    DesiredWorkloads,
    Enroll,
    Enrolled,
    GpuCheckAnswer,
    Heartbeat,
    HeartbeatReply,
    ImageSaveReport,
    Inventory,
    InventoryGpu,
    LogAnswer,
    LogRequest,
    Observation,
    Observed,
    ObservedWorkload,
    Session,
    SessionCreate,
    VolumeRemovalAnswer,
    VolumeSize,
)
from remotegpu.types.hosts import HostMetrics
from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import authz
from remotegpu_server.agents import convert
from remotegpu_server.attempts import service as attempts
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import samples, tables
from remotegpu_server.db.notify import notify
from remotegpu_server.environments.service import observe
from remotegpu_server.events import service as events
from remotegpu_server.gpus import checks
from remotegpu_server.gpus import health as gpu_health
from remotegpu_server.hosts.service import credentials, sessions
from remotegpu_server.hosts.service import health as host_health
from remotegpu_server.hosts.service import joining as hosts
from remotegpu_server.image_saves import service as image_saves
from remotegpu_server.placing import Launch
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import HOST_DISK_FULL_PERCENT
from remotegpu_server.settings import Settings
from remotegpu_server.tokens import service as tokens
from remotegpu_server.volumes import measuring, removals

LOG_REQUEST_LIFE_S = 60
"""A reader has long given up; the request is not handed out any more."""
UNKNOWN_GPUS = Counter(
    "remotegpu_unknown_gpus_total", "GPUs in heartbeats that are not in their host's inventory, left out."
)
_log = structlog.get_logger(__name__)


async def enroll(db: AsyncSession, *, actor: Actor, body: Enroll) -> Enrolled:
    """Spend the enrolment token and issue the host's credential; the old credential ends."""
    authz.require(actor, Action.AGENT_ENROLL)
    assert actor.host_id is not None, "enrolment tokens are bound to a host"
    if not await tokens.spend_enrollment(db, actor.token_id):
        raise EnrollmentTokenUsed("This enrolment token was used before, or is too old.")
    host = await sessions.lock(db, host_id=actor.host_id)
    again = host.machine_id is not None
    await tokens.revoke_of_host(db, host.id, kind=TokenKind.AGENT)
    minted = await tokens.mint(
        db, kind=TokenKind.AGENT, scopes=[Scope.AGENT], name=host.name, host_id=host.id
    )
    await db.execute(
        update(tables.Host)
        .where(tables.Host.id == host.id)
        .values(machine_id=body.machine_id, agent_version=body.agent_version, epoch=tables.Host.epoch + 1)
        .execution_options(synchronize_session=False)
    )
    how = "joined again; the credential it had is revoked" if again else "joined"
    await events.record(
        db,
        kind="host.reenrolled" if again else "host.enrolled",
        subject_type="host",
        subject_id=host.id,
        actor=actor,
        message=f"The agent of host {host.name} {how}.",
        data={"hostname": body.hostname, "agent_version": body.agent_version},
    )
    await credentials.forgive(db, host=host, actor=actor)
    notify(db, f"host:{host.id}")
    return Enrolled(host_id=host.id, host_name=host.name, credential=minted.secret)


async def create_session(
    db: AsyncSession, *, actor: Actor, body: SessionCreate, settings: Settings
) -> Session:
    """A new agent process: take over its inventory, and what it found running."""
    authz.require(actor, Action.AGENT_REPORT)
    assert actor.host_id is not None, "agent credentials are bound to a host"
    before = await sessions.lock(db, host_id=actor.host_id)
    rebooted = before.boot_id is not None and before.boot_id != body.boot_id
    superseded, before_epoch = before.connection == "online" and not rebooted, before.epoch
    if before.operational == "retired":
        raise StateConflict(f"Host {before.name} is retired.", hint="An admin activates it again.")
    host = await _take_inventory(db, host_id=before.id, body=body)
    host = await hosts.joined(db, host=host, actor=actor)
    await _upsert_gpus(db, host=host, inventory=body.inventory, actor=actor)
    if superseded and body.previous_epoch != before_epoch:
        await credentials.watch_for_copies(db, host=host, actor=actor)
    await host_health.refresh(db, host_id=host.id, actor=actor)
    await observe.host_back(db, host=host, actor=actor)
    if rebooted:
        there = {one.workload_id for one in body.workloads if one.observed is not Observed.ABSENT}
        await observe.host_rebooted(db, host=host, still_there=there, actor=actor)
        await attempts.host_rebooted(db, host=host, actor=actor)
    for report in body.workloads:
        await observe.apply_report(db, host_id=host.id, report=report, actor=actor)
    await events.record(
        db,
        kind="host.registered",
        subject_type="host",
        subject_id=host.id,
        actor=actor,
        reason="host_rebooted" if rebooted else None,
        message=f"Agent session {host.epoch} of host {host.name} began.",
        data={"epoch": host.epoch, "rebooted": rebooted, "was_online": superseded},
    )
    notify(db, f"host:{host.id}", "queue")
    return Session(host_id=host.id, epoch=host.epoch, next_in_s=settings.heartbeat_s)


async def _take_inventory(db: AsyncSession, *, host_id: str, body: SessionCreate) -> tables.Host:
    row, inventory = tables.Host, body.inventory
    host = await db.scalar(
        update(row)
        .where(row.id == host_id)
        .values(
            epoch=row.epoch + 1,
            heartbeat_sequence=0,
            revision=row.revision + 1,
            connection="online",
            boot_id=body.boot_id,
            agent_version=body.agent_version,
            labels=row.labels.op("||")(bindparam("labels", body.labels, row.labels.type)),
            inventory=inventory.model_dump(mode="json", exclude={"gpus"}),
            cpus=inventory.cpus,
            memory_bytes=inventory.memory_bytes,
            runtime=str(inventory.runtime),
            runtime_healthy=inventory.runtime_healthy,
            runtime_detail=inventory.runtime_detail,
            address=inventory.address,
            shared_home=inventory.shared_home,
            last_heartbeat_at=func.now(),
            registered_at=func.now(),
        )
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert host is not None, "the row is locked"
    return host


async def _upsert_gpus(db: AsyncSession, *, host: tables.Host, inventory: Inventory, actor: Actor) -> None:
    """GPUs by UUID. One that is another host's is refused; one that is gone becomes ``missing``, and needs a
    check when it is back.
    """
    uuids = [gpu.uuid for gpu in inventory.gpus]
    row = tables.Gpu
    known = {
        gpu.uuid: gpu
        for gpu in await db.scalars(
            select(row)
            .where((row.host_id == host.id) | row.uuid.in_(uuids))
            .order_by(row.id)
            .with_for_update()
        )
    }
    foreign = [gpu for gpu in known.values() if gpu.host_id != host.id]
    if foreign:
        raise StateConflict(
            f"GPU {foreign[0].uuid} is registered to another host ({foreign[0].host_id}).",
            hint="A moved card: delete the old host first. A copied machine: enrol it as a host of its own.",
            data={"uuids": [gpu.uuid for gpu in foreign]},
        )
    returned: list[str] = []
    for gpu in inventory.gpus:
        facts = {
            "index": gpu.index,
            "model": gpu.model,
            "product": gpu.product,
            "memory_total_bytes": gpu.memory_total_bytes,
            "pci_bus_id": gpu.pci_bus_id,
            "numa_node": gpu.numa_node,
            "nvlink_group": gpu.nvlink_group,
            "mig_enabled": bool(gpu.mig_enabled) and gpu.mig_profile is None,
            "mig_profile": gpu.mig_profile if gpu.parent_uuid else None,
            "parent_uuid": gpu.parent_uuid if gpu.mig_profile else None,
            "gpu_fraction": _fraction(gpu, inventory),
            "simulated": gpu.simulated,
        }
        present = known.pop(gpu.uuid, None)
        if present is None:
            made = {"id": tables.new_id("gpu"), "host_id": host.id, "uuid": gpu.uuid}
            await db.execute(insert(row).values(**made, **facts))
        else:
            await db.execute(
                update(row)
                .where(row.id == present.id)
                .values(**facts)
                .execution_options(synchronize_session=False)
            )
            if present.health == "missing":
                returned.append(present.id)
    gone = [gpu.id for gpu in known.values() if gpu.health != "missing"]
    await gpu_health.mark(db, gpu_ids=returned, health="unhealthy", reason=gpu_health.RETURNED, actor=actor)
    await gpu_health.mark(db, gpu_ids=gone, health="missing", reason=gpu_health.MISSING, actor=actor)


def _fraction(gpu: InventoryGpu, inventory: Inventory) -> float:
    """A MIG instance counts by its part of its parent's memory."""
    if gpu.mig_profile is None:
        return 1.0
    total = next((one.memory_total_bytes for one in inventory.gpus if one.uuid == gpu.parent_uuid), 0)
    return min(1.0, max(0.01, gpu.memory_total_bytes / total)) if total else 1.0


_BEAT = text("""
    WITH before AS (
        SELECT id, connection, runtime_healthy, disk_full, heartbeat_sequence,
            :sequence = 0 OR heartbeat_sequence < :sequence AS fresh
        FROM hosts
        WHERE id = :host_id AND epoch = :epoch
        FOR NO KEY UPDATE
    )
    UPDATE hosts SET last_heartbeat_at = now(),
        connection = CASE WHEN before.fresh THEN 'online' ELSE hosts.connection END,
        runtime_healthy = CASE WHEN before.fresh THEN :healthy ELSE hosts.runtime_healthy END,
        runtime_detail = CASE WHEN before.fresh THEN :detail ELSE hosts.runtime_detail END,
        quarantined = CASE WHEN before.fresh THEN :quarantined ELSE hosts.quarantined END,
        disk_full = CASE WHEN before.fresh THEN :disk_full ELSE hosts.disk_full END,
        heartbeat_sequence = greatest(before.heartbeat_sequence, :sequence)
    FROM before WHERE hosts.id = before.id
    RETURNING hosts.revision, before.connection, before.runtime_healthy, before.disk_full, before.fresh,
        ARRAY(SELECT uuid FROM gpus WHERE gpus.host_id = hosts.id) AS uuids, clock_timestamp() AS at,
        set_config('synchronous_commit', 'off', true)
""").bindparams(bindparam("quarantined", type_=ARRAY(Text)), bindparam("sequence", type_=BigInteger))


async def heartbeat(db: AsyncSession, *, actor: Actor, body: Heartbeat, settings: Settings) -> HeartbeatReply:
    """Alive, and measured: one UPDATE; the rest only where something differs.

    Alone, it does not wait for the disk: a crash may forget a heartbeat, and the next one comes soon.
    """
    authz.require(actor, Action.AGENT_REPORT)
    assert actor.host_id is not None, "agent credentials are bound to a host"
    disk_full = await _disk_is_full(db, body.host)
    beat = (
        await db.execute(
            _BEAT,
            {
                "host_id": actor.host_id,
                "epoch": body.epoch,
                "healthy": body.runtime_healthy,
                "detail": body.runtime_detail,
                "quarantined": body.quarantined,
                "disk_full": disk_full,
                "sequence": body.sequence or 0,
            },
        )
    ).one_or_none()
    if beat is None:
        current = await db.scalar(select(tables.Host.epoch).where(tables.Host.id == actor.host_id))
        raise sessions.stale(current or 0)
    if not beat.fresh:  # repeated or overtaken: what it says is older than what is known
        return HeartbeatReply(next_in_s=settings.heartbeat_s, revision=beat.revision)
    revision, connection, was_healthy, was_full, _, uuids, at, _ = beat
    body, strangers = convert.of_inventory(body, uuids=frozenset(uuids))
    if strangers:
        UNKNOWN_GPUS.inc(len(strangers))
        _log.warning("unknown_gpus_in_heartbeat", host_id=actor.host_id, gpus=len(strangers))
    samples.of(db).put(convert.sample(body, host_id=actor.host_id, at=at))
    sick = await gpu_health.take_out(db, actor=actor, host_id=actor.host_id, gpus=body.gpus)
    changed = connection != "online" or was_healthy != body.runtime_healthy
    worse = sick or was_full != disk_full or was_healthy != body.runtime_healthy
    if changed:
        await _changed(
            db, actor=actor, host_id=actor.host_id, connection=connection, healthy=body.runtime_healthy
        )
    if worse:
        await host_health.refresh(db, host_id=actor.host_id, actor=actor)
    news = await _news(db, host_id=actor.host_id, reports=body.observed)
    for report in news:
        await observe.apply_report(db, host_id=actor.host_id, report=report, actor=actor)
    if changed or worse or news:  # what a crash must not undo
        await db.execute(text("SET LOCAL synchronous_commit TO DEFAULT"))
    return HeartbeatReply(next_in_s=settings.heartbeat_s, revision=revision)


async def _disk_is_full(db: AsyncSession, metrics: HostMetrics) -> bool:
    """The setting is read only where it can matter: heartbeats are many."""
    used, total = metrics.disk_used_bytes, metrics.disk_total_bytes
    percent = 100 * used / total if used is not None and total else 0.0
    if percent <= (HOST_DISK_FULL_PERCENT.minimum or 0.0):
        return False
    return percent > await platform_settings.value(db, HOST_DISK_FULL_PERCENT)


async def _changed(db: AsyncSession, *, actor: Actor, host_id: str, connection: str, healthy: bool) -> None:
    """The host is back, or its runtime has changed: rare, so the row is read only here."""
    host = await sessions.lock(db, host_id=host_id)
    if connection != "online":
        await observe.host_back(db, host=host, actor=actor)
    what = "is back" if connection != "online" else "has a healthy runtime" if healthy else "lost its runtime"
    await events.record(
        db,
        kind="host.connection" if connection != "online" else "host.runtime",
        subject_type="host",
        subject_id=host_id,
        actor=actor,
        message=f"Host {host.name} {what}.",
        data={"from": connection, "to": "online", "runtime_healthy": healthy, "detail": host.runtime_detail},
    )
    notify(db, "queue")


async def _news(
    db: AsyncSession, *, host_id: str, reports: Sequence[ObservedWorkload]
) -> list[ObservedWorkload]:
    """The reports that say something else than what is stored; one query for all of them."""
    if not reports:
        return []
    row = tables.Environment
    found = await db.execute(
        select(row.id, row.generation, row.observed, row.progress_percent, row.address).where(
            row.id.in_([report.workload_id for report in reports])
        )
    )
    known = {environment_id: tuple(rest) for environment_id, *rest in found}
    return [
        report
        for report in reports
        if report.workload_id in known
        and known[report.workload_id][0] == report.generation
        and known[report.workload_id][1:] != (report.observed, report.progress_percent, report.address)
    ]


async def record_observation(db: AsyncSession, *, actor: Actor, workload_id: str, body: Observation) -> None:
    """One report about one workload, fenced by epoch and generation."""
    host = await sessions.fenced(db, actor=actor, epoch=body.epoch)
    if body.workload_id != workload_id:
        raise StateConflict("The workload in the path is not the one in the body.")
    if not await observe.apply_report(db, host_id=host.id, report=body, actor=actor):
        await _require_own(db, host_id=host.id, workload_id=workload_id)
        raise GenerationStale(
            "This report is about an older start, or a workload that is not this host's.",
            data={"workload_id": workload_id, "generation": body.generation},
        )


async def _require_own(db: AsyncSession, *, host_id: str, workload_id: str) -> None:
    """Raise :class:`Forbidden` for a workload that was only ever placed on other hosts."""
    held = tables.Placement
    here = await db.scalar(
        select(func.bool_or(held.host_id == host_id)).where(held.environment_id == workload_id)
    )
    if here is False:
        raise Forbidden("This workload is another host's.")


async def answer_gpu_check(db: AsyncSession, *, actor: Actor, check_id: str, body: GpuCheckAnswer) -> None:
    """The result of a self-test that an admin asked for."""
    host = await sessions.fenced(db, actor=actor, epoch=body.epoch)
    await checks.answer(db, actor=actor, host=host, check_id=check_id, body=body)


async def answer_volume_removal(
    db: AsyncSession, *, actor: Actor, removal_id: str, body: VolumeRemovalAnswer
) -> None:
    """Whether a home is gone."""
    host = await sessions.fenced(db, actor=actor, epoch=body.epoch)
    await removals.answer(db, host=host, removal_id=removal_id, body=body, actor=actor)


async def report_volume_size(db: AsyncSession, *, actor: Actor, volume_id: str, body: VolumeSize) -> None:
    """How large a home is."""
    host = await sessions.fenced(db, actor=actor, epoch=body.epoch)
    await measuring.answer(db, host=host, volume_id=volume_id, body=body)


async def report_image_save(db: AsyncSession, *, actor: Actor, save_id: str, body: ImageSaveReport) -> None:
    """How far a save is, or how it ended."""
    host = await sessions.fenced(db, actor=actor, epoch=body.epoch)
    await image_saves.report(db, actor=actor, host=host, save_id=save_id, body=body)


async def desired_set(db: AsyncSession, *, host_id: str, launch: Launch) -> DesiredWorkloads:
    """Everything the host must make true, and the logs that somebody waits for.

    The revision is read first: a change in between is then sent again, never missed.
    """
    revision = await db.scalar(select(tables.Host.revision).where(tables.Host.id == host_id))
    row = tables.LogRequest
    asked = await db.scalars(
        select(row)
        .where(
            row.host_id == host_id,
            row.answered_at.is_(None),
            row.created_at > func.now() - text(f"interval '{LOG_REQUEST_LIFE_S} seconds'"),
        )
        .order_by(row.created_at)
    )
    granted, claimable = await attempts.granted(db, host_id=host_id)
    return DesiredWorkloads(
        revision=revision or 0,
        attempts=granted,
        claimable=claimable,
        workloads=await observe.desired_workloads(db, host_id=host_id, launch=launch),
        log_requests=[
            LogRequest(id=one.id, workload_id=one.environment_id, tail_lines=one.tail_lines) for one in asked
        ],
        gpu_checks=await checks.open_checks(db, host_id=host_id),
        volume_removals=await removals.open_removals(db, host_id=host_id),
        volume_measurements=await measuring.open_measurements(db, host_id=host_id),
        image_saves=await image_saves.open_saves(db, host_id=host_id),
    )


async def answer_log_request(db: AsyncSession, *, actor: Actor, request_id: str, body: LogAnswer) -> None:
    """The output that a reader waits for. A second answer changes nothing."""
    host = await sessions.fenced(db, actor=actor, epoch=body.epoch)
    row = tables.LogRequest
    known = await db.scalar(select(row.id).where(row.id == request_id, row.host_id == host.id))
    if known is None:
        raise NotFound("Nobody asked for this output, or nobody waits any more.")
    await db.execute(
        update(row)
        .where(row.id == request_id, row.answered_at.is_(None))
        .values(text=body.text.replace("\x00", ""), truncated=body.truncated, answered_at=func.now())
        .execution_options(synchronize_session=False)
    )
    notify(db, f"log-request:{request_id}")
