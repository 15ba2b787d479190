"""What agents say, and what their silence means."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.agent import DesiredState, HomeVolume, Observed, ObservedWorkload, Workload
from remotegpu.types.environments import EnvironmentStatus, Reason
from remotegpu_server import holds
from remotegpu_server.asks import HeldGpu
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.environments import lifecycle, queries
from remotegpu_server.environments.service import stop_times
from remotegpu_server.events import service as events
from remotegpu_server.placing import Launch, open_env
from remotegpu_server.ssh_keys import service as ssh_keys

PORT = 8888
STOP_GRACE_S = 30.0
START_TIMEOUT_S = 300.0
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
Status = EnvironmentStatus

_REASONS = {
    Observed.PULLING: (Reason.PULLING, "Pulling the image."),
    Observed.CREATING: (Reason.CREATING, "Creating the container."),
    Observed.STARTING: (Reason.WAITING_FOR_SERVER, "The container runs; waiting for the notebook server."),
    Observed.RUNNING: (Reason.READY, "Ready."),
    Observed.EXITED: (Reason.EXITED, "The container ended by itself."),
    Observed.FAILED: (Reason.START_FAILED, "The host could not start it."),
}


async def apply_report(db: AsyncSession, *, host_id: str, report: ObservedWorkload, actor: Actor) -> bool:
    """Take over one report; the caller has locked the host and checked the epoch.

    False: it is about an older generation, or a workload that is not this host's.
    """
    environment = await queries.lock(db, environment_id=report.workload_id)
    if environment is None or environment.generation != report.generation:
        return False
    held = await queries.live_placement(db, environment_id=environment.id)
    if held is None or held.host_id != host_id or held.generation != report.generation:
        return report.observed is Observed.ABSENT and await _absent_again(db, environment, host_id=host_id)
    await _pin_digest(db, environment=environment, digest=report.image_digest, actor=actor)
    if report.observed is Observed.ABSENT:
        await _absent(db, environment=environment, placement=held, report=report, actor=actor)
    elif report.observed is not Observed.UNKNOWN:
        await _seen(db, environment=environment, placement=held, report=report, actor=actor)
    return True


async def _absent_again(db: AsyncSession, environment: tables.Environment, *, host_id: str) -> bool:
    """A repeated proof, or the one missing after an admin's release. True when it was this host's."""
    held = tables.Placement
    was_here = await db.scalar(
        select(held.id).where(
            held.environment_id == environment.id,
            held.generation == environment.generation,
            held.host_id == host_id,
        )
    )
    if was_here is None:
        return False
    if environment.observed != Observed.ABSENT:
        await queries.store(db, environment, observed=str(Observed.ABSENT))
        await holds.bump_revision(db, host_id=host_id)
    return True


async def _absent(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    placement: tables.Placement,
    report: ObservedWorkload,
    actor: Actor,
) -> None:
    """Proof, when absence is what we asked for. Otherwise it vanished: ask for it, and wait for the proof.

    Releasing at once would trust an agent that may be about to create it.
    """
    if desired_state(environment) is DesiredState.RUNNING:
        await fail(
            db,
            environment=environment,
            host_id=placement.host_id,
            reason=Reason.WORKLOAD_VANISHED,
            message=report.message or "The container is gone, and nobody asked for that.",
            actor=actor,
            observed=str(Observed.ABSENT),
        )
        return
    environment = await queries.store(db, environment, observed=str(Observed.ABSENT))
    await holds.release(db, placement=placement, proof="absent")
    await lifecycle.settle_released(
        db,
        environment=environment,
        reason=Reason(environment.reason),
        message="Deleted." if environment.desired == "deleted" else "Stopped.",
        actor=actor,
    )


async def _seen(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    placement: tables.Placement,
    report: ObservedWorkload,
    actor: Actor,
) -> None:
    """Store what was seen and move the status, if anything is new."""
    to = lifecycle.project(
        desired=environment.desired,
        observed=str(report.observed),
        placed=True,
        silent=False,
        status=environment.status,
    )
    if to in (Status.FAILED, Status.STOPPING) and environment.status == to:
        remains = _remains(report, environment)
        news = environment.observed != report.observed or environment.log_tail != remains["log_tail"]
        if news:
            await queries.store(db, environment, observed=str(report.observed), **remains)
        return
    if to is Status.FAILED:
        reason, message = _explain(report)
        await fail(
            db,
            environment=environment,
            host_id=placement.host_id,
            reason=reason,
            message=message,
            actor=actor,
            observed=str(report.observed),
            **_remains(report, environment),
        )
        return
    if to is Status.STOPPING:
        reason, message = Reason(environment.reason), "Stopping."
    else:
        reason, message = _explain(report)
    values: dict[str, Any] = {
        "observed": str(report.observed),
        "progress_percent": report.progress_percent if to is Status.STARTING else None,
        "address": report.address if to is Status.RUNNING else None,
        "endpoints": report.endpoints if to is Status.RUNNING else {},
    }
    if all(getattr(environment, column) == value for column, value in values.items()) and (
        (environment.status, environment.reason, environment.message) == (to, reason, message)
    ):
        return
    if to is Status.RUNNING and environment.started_at is None:
        values |= {"started_at": func.now(), "deadline_at": stop_times.deadline_from_now()}
    await lifecycle.move(
        db, environment=environment, to=to, reason=reason, message=message, actor=actor, **values
    )


def _explain(report: ObservedWorkload) -> tuple[Reason, str]:
    reason, message = _REASONS.get(report.observed, (Reason.UNKNOWN, ""))
    if report.reason is not None:
        reason = Reason(report.reason)
    if report.observed is Observed.EXITED and report.exit_code is not None:
        message = f"The container ended by itself with exit code {report.exit_code}."
    if report.progress_percent is not None and report.observed is Observed.PULLING:
        message = f"Pulling the image: {report.progress_percent} %."
    return reason, report.message or message


def _remains(report: ObservedWorkload, environment: tables.Environment) -> dict[str, Any]:
    """What is kept of a container that ended."""
    return {
        "exit_code": report.exit_code if report.exit_code is not None else environment.exit_code,
        "log_tail": report.log_tail if report.log_tail is not None else environment.log_tail,
    }


async def fail(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    host_id: str,
    reason: Reason,
    message: str,
    actor: Actor,
    **values: Any,
) -> None:
    """The generation failed. Its placement stays until its agent, told to remove it, reports ``absent``."""
    await lifecycle.move(
        db, environment=environment, to=Status.FAILED, reason=reason, message=message, actor=actor, **values
    )
    await holds.bump_revision(db, host_id=host_id)


async def _pin_digest(
    db: AsyncSession, *, environment: tables.Environment, digest: str | None, actor: Actor
) -> None:
    """The first host that made a container of an unpinned image says what its content is."""
    if digest is None or _DIGEST.match(digest) is None:
        return
    image = tables.Image
    pinned = await db.scalar(
        update(image)
        .where(image.id == environment.image_id, image.digest.is_(None))
        .values(digest=digest)
        .returning(image.name)
        .execution_options(synchronize_session=False)
    )
    if pinned is not None:
        await events.record(
            db,
            kind="image.pinned",
            subject_type="image",
            subject_id=environment.image_id,
            actor=actor,
            message=f"Image {pinned} is now pinned to {digest}.",
            data={"digest": digest},
        )


def desired_state(environment: tables.Environment) -> DesiredState:
    """What the agent must make true: a failed generation is to be removed, like one that nobody wants."""
    wanted = environment.desired == "running" and environment.status not in lifecycle.ENDED
    return DesiredState.RUNNING if wanted else DesiredState.ABSENT


async def desired_workloads(db: AsyncSession, *, host_id: str, launch: Launch) -> list[Workload]:
    """Everything that a host must run or remove: live placements, and those an admin released unproven."""
    held, wanted = tables.Placement, tables.Environment
    rows = await db.execute(
        select(held, wanted, tables.User.username, tables.Image, tables.Volume)
        .join(wanted, wanted.id == held.environment_id)
        .join(tables.User, tables.User.id == wanted.owner_id)
        .join(tables.Image, tables.Image.id == wanted.image_id)
        .join(tables.Volume, tables.Volume.id == held.volume_id)
        .where(
            held.host_id == host_id,
            held.generation == wanted.generation,
            held.released_at.is_(None) | ((held.release_proof == "admin") & (wanted.observed != "absent")),
        )
        .order_by(held.id)
        .execution_options(populate_existing=True)
    )
    found = rows.all()
    ids = [environment.id for _, environment, *_ in found]
    gpus = await queries.held_gpus(db, environment_ids=ids)
    keys = await ssh_keys.lines_of(db, environment_ids=ids)
    return [
        _workload(
            placement,
            environment,
            owner,
            image,
            volume,
            gpus.get(environment.id, []),
            keys.get(environment.id, []),
            launch,
        )
        for placement, environment, owner, image, volume in found
    ]


def _workload(
    placement: tables.Placement,
    environment: tables.Environment,
    owner: str,
    image: tables.Image,
    volume: tables.Volume,
    gpus: list[HeldGpu],
    keys: list[str],
    launch: Launch,
) -> Workload:
    live = placement.released_at is None
    desired = desired_state(environment) if live else DesiredState.ABSENT
    running = desired is DesiredState.RUNNING
    return Workload(
        id=environment.id,
        generation=placement.generation,
        desired=desired,
        name=environment.name,
        owner=owner,
        # A local image by its content, which no agent can mistake for something to pull.
        image_reference=image.digest if image.local and image.digest else image.reference,
        image_digest=None if image.local else image.digest,
        command=image.command,
        env=environment.env | _share(gpus),
        secret_env=open_env(launch.vault, environment.secret_env) if running else {},
        gpu_uuids=[held.gpu.uuid for held in gpus] if live else [],
        cpus=placement.cpus,
        memory_bytes=placement.memory_bytes,
        authorized_keys=keys if running else [],
        home=HomeVolume(volume_id=volume.id, shared=volume.shared_home is not None),
        port=PORT,
        stop_grace_s=STOP_GRACE_S,
        start_timeout_s=START_TIMEOUT_S,
    )


def _share(gpus: list[HeldGpu]) -> dict[str, str]:
    """A soft limit is only as good as the environment's word: it is told."""
    shares = [held.allocation.memory_bytes for held in gpus if held.allocation.memory_bytes is not None]
    return {"REMOTEGPU_GPU_MEMORY_BYTES": str(shares[0])} if shares else {}


async def host_silent(db: AsyncSession, *, host: tables.Host, actor: Actor) -> int:
    """Show the host's environments as unreachable; answers how many. Nothing is released."""
    moved = 0
    for environment in await _on_host(db, host_id=host.id, statuses=("starting", "running", "stopping")):
        await lifecycle.move(
            db,
            environment=environment,
            to=Status.UNREACHABLE,
            reason=Reason.HOST_SILENT,
            message=f"Host {host.name} is silent; the environment is presumed alive and keeps its GPUs.",
            actor=actor,
        )
        moved += 1
    return moved


async def host_back(db: AsyncSession, *, host: tables.Host, actor: Actor) -> int:
    """The host speaks again: show what was last seen, until its agent reports anew."""
    moved = 0
    for environment in await _on_host(db, host_id=host.id, statuses=("unreachable",)):
        to = lifecycle.project(
            desired=environment.desired,
            observed=environment.observed,
            placed=True,
            silent=False,
            status=environment.status,
        )
        await lifecycle.move(
            db,
            environment=environment,
            to=to,
            reason=Reason.HOST_BACK,
            message=f"Host {host.name} is back.",
            actor=actor,
        )
        moved += 1
    return moved


async def host_rebooted(
    db: AsyncSession, *, host: tables.Host, still_there: Collection[str], actor: Actor
) -> int:
    """A new boot id proves that nothing of the old boot runs: release it all.

    ``still_there`` are workloads that the agent reports all the same; they keep what they hold.
    """
    held = tables.Placement
    rows = await db.scalars(
        select(held).where(held.host_id == host.id, held.released_at.is_(None)).order_by(held.environment_id)
    )
    released = 0
    for placement in rows.all():
        if placement.environment_id is None or placement.environment_id in still_there:
            continue
        environment = await queries.lock(db, environment_id=placement.environment_id)
        assert environment is not None, "placements keep their environment"
        await holds.release(db, placement=placement, proof="reboot")
        environment = await queries.store(db, environment, observed=str(Observed.ABSENT))
        await lifecycle.settle_released(
            db,
            environment=environment,
            reason=Reason.HOST_REBOOTED,
            message=f"Host {host.name} was restarted; the container is gone. Files in the home are kept.",
            actor=actor,
        )
        released += 1
    return released


async def _on_host(db: AsyncSession, *, host_id: str, statuses: tuple[str, ...]) -> list[tables.Environment]:
    """Environments with a live placement on the host, locked in id order; the host is locked already."""
    held, wanted = tables.Placement, tables.Environment
    found = await db.scalars(
        select(wanted)
        .join(held, held.environment_id == wanted.id)
        .where(held.host_id == host_id, held.released_at.is_(None), wanted.status.in_(statuses))
        .order_by(wanted.id)
        .with_for_update(key_share=True, of=wanted)
        .execution_options(populate_existing=True)
    )
    return list(found.all())
