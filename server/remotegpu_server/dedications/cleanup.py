"""The clean-up after a dedication, step by step. A step is done when its proof is there, never before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.environments import Reason
from remotegpu_server import holds
from remotegpu_server.authz import SYSTEM, Actor
from remotegpu_server.db import tables
from remotegpu_server.dedications import lifecycle
from remotegpu_server.environments import queries as environment_queries
from remotegpu_server.environments.service import stop
from remotegpu_server.hosts import lifecycle as host_lifecycle
from remotegpu_server.hosts import queries as host_queries
from remotegpu_server.notifications import service as notifications
from remotegpu_server.tasks.service import stop as tasks
from remotegpu_server.tokens import service as tokens
from remotegpu_server.volumes import removals

HELD_BACK = "It is cleaned after a dedication."
"""Reason of the cordon that keeps work away meanwhile."""


class GivenUp(Exception):
    """The step will not get its proof by waiting."""


async def begin(
    db: AsyncSession, *, dedication: tables.Dedication, message: str, reason: str, actor: Actor
) -> tables.Dedication:
    """From active or grace to cleaning: no new work, all steps pending."""
    ends_at = func.greatest(dedication.starts_at, func.least(dedication.ends_at, func.now()))
    changed = await lifecycle.move(
        db,
        dedication=dedication,
        to="cleaning",
        message=message,
        actor=actor,
        end_reason=reason,
        ends_at=ends_at,
    )
    host = await host_queries.found(db, changed.host_id, lock=True)
    if host.operational in ("available", "draining"):
        await host_lifecycle.move(
            db,
            host=host,
            to="cordoned",
            reason=HELD_BACK,
            kind="host.cordoned",
            message=f"Host {host.name} takes no new work. {HELD_BACK}",
            actor=actor,
        )
    rows = [
        {"dedication_id": changed.id, "name": name, "position": position}
        for position, name in enumerate(_STEPS, start=1)
    ]
    await db.execute(insert(tables.DedicationStep), rows)
    return changed


async def retry(db: AsyncSession, *, dedication: tables.Dedication) -> None:
    """Begin failed steps anew."""
    row, removal = tables.DedicationStep, tables.VolumeRemoval
    await db.execute(
        update(row)
        .where(row.dedication_id == dedication.id, row.status == "failed")
        .values(status="pending", attempts=0, detail="", started_at=None)
        .execution_options(synchronize_session=False)
    )
    await db.execute(
        update(removal)
        .where(removal.dedication_id == dedication.id, removal.removed_at.is_(None))
        .values(failures=0)
        .execution_options(synchronize_session=False)
    )
    await holds.bump_revision(db, host_id=dedication.host_id)


async def advance(db: AsyncSession, *, dedication_id: str, step_limit_s: float) -> None:
    """Go on with the first step that is not done; several in one pass where their proof is there."""
    dedication = await lifecycle.locked(db, dedication_id=dedication_id)
    row = tables.DedicationStep
    while dedication.status == "cleaning":
        step = await db.scalar(
            select(row)
            .where(row.dedication_id == dedication_id, row.status != "done")
            .order_by(row.position)
            .limit(1)
            .execution_options(populate_existing=True)
        )
        if step is None:
            await _finish(db, dedication)
            return
        if step.status == "failed" or not await _try(db, dedication, step, step_limit_s=step_limit_s):
            return


async def _try(
    db: AsyncSession, dedication: tables.Dedication, step: tables.DedicationStep, *, step_limit_s: float
) -> bool:
    """One attempt; True when the step is done."""
    row = tables.DedicationStep
    late = False
    if step.started_at is not None:
        running = await db.scalar(select(func.extract("epoch", func.now() - step.started_at)))
        late = float(running or 0) > step_limit_s
    try:
        waits_for = await _STEPS[step.name](db, dedication)
        failed = bool(waits_for) and late
    except GivenUp as error:
        waits_for, failed = str(error), True
    status = "failed" if failed else "running" if waits_for else "done"
    await db.execute(
        update(row)
        .where(row.dedication_id == dedication.id, row.name == step.name)
        .values(
            status=status,
            detail=waits_for or await _done(db, dedication, step.name),
            attempts=row.attempts + 1,
            started_at=func.coalesce(row.started_at, func.now()),
            finished_at=func.now() if status == "done" else None,
        )
        .execution_options(synchronize_session=False)
    )
    if status != step.status and status != "running":
        message = f"Clean-up of {dedication.id}: {step.name} {status}. {waits_for or ''}".strip()
        await lifecycle.record(db, dedication, what=f"step_{status}", message=message, actor=SYSTEM)
        if failed:
            await notifications.tell(
                db,
                user_ids=await host_queries.admins(db),
                kind="dedication.step_failed",
                level="error",
                message=message,
                subject_type="dedication",
                subject_id=dedication.id,
            )
    return status == "done"


async def _done(db: AsyncSession, dedication: tables.Dedication, step: str) -> str:
    """What a step that is done says. Homes under a shared root are not the host's: others reach them too, and
    what is on one host must not end because the tenant left another one.
    """
    volume, held = tables.Volume, tables.Placement
    if step != "wipe_homes":
        return "Done."
    used = select(held.volume_id).where(lifecycle.of_tenant(dedication))
    roots = await db.execute(
        select(volume.shared_home, func.count())
        .where(volume.shared_home.is_not(None), volume.id.in_(used))
        .group_by(volume.shared_home)
        .order_by(volume.shared_home)
    )
    left = [f"{count} under the shared root {root}" for root, count in roots]
    if not left:
        return "Done."
    return f"Done. Homes that stay: {', '.join(left)}; other hosts reach them. Unmount it to take them away."


async def _stop_work(db: AsyncSession, dedication: tables.Dedication) -> str:
    """Environments stop; tasks wait again for another host."""
    left = [
        f"{count} {what}"
        for what, count in (
            ("environments", await _stop_environments(db, dedication)),
            ("tasks", await _send_tasks_back(db, dedication)),
        )
        if count
    ]
    return f"{' and '.join(left)} still hold something." if left else ""


async def _send_tasks_back(db: AsyncSession, dedication: tables.Dedication) -> int:
    held, attempt = tables.Placement, tables.Attempt
    live = (
        await db.execute(
            select(attempt.task_id, attempt.finished_at.is_(None))
            .join(held, held.attempt_id == attempt.id)
            .where(lifecycle.of_tenant(dedication), held.released_at.is_(None))
            .order_by(attempt.task_id)
        )
    ).all()
    for task_id, runs in live:
        if runs:
            await tasks.give_way(
                db,
                task_id=task_id,
                host_id=dedication.host_id,
                reason=Reason.DEDICATION_ENDED,
                message="The period for which its host was lent is over.",
            )
    return (
        await db.scalar(
            select(func.count())
            .select_from(held)
            .where(lifecycle.of_tenant(dedication), held.attempt_id.is_not(None), held.released_at.is_(None))
        )
        or 0
    )


async def _stop_environments(db: AsyncSession, dedication: tables.Dedication) -> int:
    held, wanted = tables.Placement, tables.Environment
    live = (
        await db.scalars(
            select(wanted.id)
            .join(held, held.environment_id == wanted.id)
            .where(lifecycle.of_tenant(dedication), held.released_at.is_(None))
            .order_by(wanted.id)
        )
    ).all()
    for environment_id in live:
        environment = await environment_queries.lock(db, environment_id=environment_id)
        if environment is not None and environment.desired == "running":
            await stop.end(
                db,
                environment=environment,
                desired="stopped",
                reason=Reason.DEDICATION_ENDED,
                message="Stopped, because the period for which its host was lent is over.",
                actor=SYSTEM,
            )
    return len(live)


async def _revoke_keys(db: AsyncSession, dedication: tables.Dedication) -> str:
    """Tokens of what ran there and runs nowhere else now. SSH keys lie in the homes and end with them."""
    held, token = tables.Placement, tables.Token
    here = select(held.environment_id).where(lifecycle.of_tenant(dedication))
    running = select(held.environment_id).where(held.released_at.is_(None))
    await tokens.revoke(
        db,
        token.kind == "workload",
        token.environment_id.in_(here),
        token.environment_id.not_in(running),
    )
    return ""


async def _wipe_homes(db: AsyncSession, dedication: tables.Dedication) -> str:
    """Ask the host's agent to remove the homes, and wait for its word about each."""
    used = 0
    for volume_id in await _homes(db, dedication):
        asked = await removals.request(
            db,
            host_id=dedication.host_id,
            volume_id=volume_id,
            actor=SYSTEM,
            dedication_id=dedication.id,
        )
        used += not asked
    removal = tables.VolumeRemoval
    left = (
        await db.scalars(
            select(removal).where(removal.dedication_id == dedication.id, removal.removed_at.is_(None))
        )
    ).all()
    broken = [one for one in left if one.failures >= removals.MOST_FAILURES]
    if broken:
        raise GivenUp(f"The agent cannot remove {broken[0].volume_id}: {broken[0].detail}")
    return f"{len(left) + used} homes are still on the host." if left or used else ""


async def _homes(db: AsyncSession, dedication: tables.Dedication) -> Sequence[str]:
    """Not yet asked for: of the customer, every home on the host's disk; of a workspace, those that its work
    used there.
    """
    volume, owner, held, removal = tables.Volume, tables.User, tables.Placement, tables.VolumeRemoval
    asked = select(removal.volume_id).where(
        removal.removed_at.is_(None), removal.dedication_id == dedication.id
    )
    found = (
        select(volume.id)
        .where(volume.host_id == dedication.host_id, volume.removed_at.is_(None), volume.id.not_in(asked))
        .order_by(volume.id)
    )
    if dedication.workspace_id is None:
        found = found.join(owner, owner.id == volume.owner_id).where(
            owner.customer_id == dedication.customer_id
        )
    else:
        used = select(held.volume_id).where(lifecycle.of_tenant(dedication))
        found = found.where(volume.id.in_(used))
    return (await db.scalars(found)).all()


async def _verify_absence(db: AsyncSession, dedication: tables.Dedication) -> str:
    """The host was heard after the wipe, and nothing that it says or that is stored is the tenant's."""
    held, wanted, host, step = tables.Placement, tables.Environment, tables.Host, tables.DedicationStep
    unproven = await db.scalar(
        select(func.count())
        .select_from(held)
        .join(wanted, (wanted.id == held.environment_id) & (wanted.generation == held.generation))
        .where(
            lifecycle.of_tenant(dedication),
            held.released_at.is_(None) | ((held.release_proof == "admin") & (wanted.observed != "absent")),
        )
    )
    if unproven:
        return f"{unproven} containers are not proven gone."
    quarantined, heard = (
        await db.execute(
            select(host.quarantined, host.last_heartbeat_at > step.finished_at)
            .join(step, (step.dedication_id == dedication.id) & (step.name == "wipe_homes"))
            .where(host.id == dedication.host_id)
        )
    ).one()
    if not heard:
        return "Waits for the host's next heartbeat."
    return f"{len(quarantined)} unexplained containers are on the host." if quarantined else ""


_Step = Callable[[AsyncSession, tables.Dedication], Awaitable[str]]
_STEPS: dict[str, _Step] = {
    "stop_environments": _stop_work,
    "revoke_keys": _revoke_keys,
    "wipe_homes": _wipe_homes,
    "verify_absence": _verify_absence,
}
"""In their order. Each answers what it still waits for; nothing: it is done."""


async def _finish(db: AsyncSession, dedication: tables.Dedication) -> None:
    await lifecycle.move(
        db,
        dedication=dedication,
        to="ended",
        message="The host is clean: nothing of the tenant is left on its own disk.",
        actor=SYSTEM,
        cleaned_at=func.now(),
    )
    host = await host_queries.found(db, dedication.host_id, lock=True)
    if host.operational == "cordoned" and host.operational_reason == HELD_BACK:
        await host_lifecycle.move(
            db,
            host=host,
            to="available",
            reason=None,
            kind="host.uncordoned",
            message=f"Host {host.name} is clean and takes new work again.",
            actor=SYSTEM,
        )
