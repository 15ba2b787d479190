"""The verbs of a host, one by one and for many at once, and the end of a drain."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import ApiError, InUse
from remotegpu.types.environments import Reason
from remotegpu.types.hosts import Host, HostBatch, HostDrain, HostVerb
from remotegpu.types.identity import TokenKind
from remotegpu.types.wire import BatchResult
from remotegpu_server import authz, holds
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import SYSTEM, Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.environments import queries as environment_queries
from remotegpu_server.environments.service import stop
from remotegpu_server.events import service as events
from remotegpu_server.hosts import lifecycle, queries
from remotegpu_server.hosts.service import entries
from remotegpu_server.tasks.service import stop as tasks
from remotegpu_server.tokens import service as tokens


async def operate(db: AsyncSession, *, actor: Actor, host: str, verb: HostVerb, reason: str | None) -> Host:
    """Do a verb that needs no more than a reason; one that is done already changes nothing."""
    authz.require(actor, Action.HOST_WRITE)
    row = await _operate(db, actor=actor, host=host, verb=verb, reason=reason)
    (changed,) = await entries.to_wire(db, [row])
    return changed


async def drain(db: AsyncSession, *, actor: Actor, host: str, body: HostDrain) -> Host:
    """Warn the users, take no new work, and stop what is left at the deadline, if there is one."""
    authz.require(actor, Action.HOST_WRITE)
    row = await _drain(db, actor=actor, host=host, body=body)
    (changed,) = await entries.to_wire(db, [row])
    return changed


async def batch(db: AsyncSession, *, actor: Actor, body: HostBatch) -> BatchResult:
    """Each host by itself: one that is refused changes nothing of the others."""
    authz.require(actor, Action.HOST_WRITE)
    succeeded: list[str] = []
    failed: dict[str, str] = {}
    # In id order, like every place that locks several hosts in one transaction.
    for host in sorted(set(body.hosts)):
        try:
            async with db.begin_nested():
                if body.verb is HostVerb.DRAIN:
                    wish = HostDrain(deadline_s=body.deadline_s, message=body.reason)
                    await _drain(db, actor=actor, host=host, body=wish)
                else:
                    await _operate(db, actor=actor, host=host, verb=body.verb, reason=body.reason or None)
        except ApiError as error:
            failed[host] = error.detail
        else:
            succeeded.append(host)
    audit.note(db, verb=str(body.verb), succeeded=succeeded, failed=failed)
    return BatchResult(succeeded=succeeded, failed=failed)


async def _operate(
    db: AsyncSession, *, actor: Actor, host: str, verb: HostVerb, reason: str | None
) -> tables.Host:
    row = await queries.found(db, host, lock=True)
    before = row.operational
    if verb is HostVerb.RETIRE:
        await _require_no_dedication(db, row)
    changed = await lifecycle.apply(db, host=row, verb=verb, reason=reason, actor=actor)
    if verb is HostVerb.RETIRE:
        for kind in (TokenKind.AGENT, TokenKind.ENROLLMENT):
            await tokens.revoke_of_host(db, row.id, kind=kind)
    audit.note(db, old={"operational": before}, new={"operational": changed.operational, "reason": reason})
    return changed


async def _require_no_dedication(db: AsyncSession, row: tables.Host) -> None:
    lent = tables.Dedication
    open_ = await db.scalar(
        select(lent.id).where(
            lent.host_id == row.id, lent.status.in_(["scheduled", "active", "grace", "cleaning"])
        )
    )
    if open_ is not None:
        raise InUse(
            f"{row.name} is dedicated ({open_}).",
            hint="End the dedication first.",
            data={"dedication": open_},
        )


async def _drain(db: AsyncSession, *, actor: Actor, host: str, body: HostDrain) -> tables.Host:
    row = await queries.found(db, host, lock=True)
    before = row.operational
    deadline = None if body.deadline_s is None else func.now() + timedelta(seconds=body.deadline_s)
    said = " ".join(filter(None, [_warning(body.deadline_s), body.message]))
    changed = await lifecycle.apply(
        db, host=row, verb=HostVerb.DRAIN, reason=said, actor=actor, drain_deadline=deadline
    )
    audit.note(db, old={"operational": before}, new={"operational": "draining", "reason": said})
    return changed


def _warning(deadline_s: int | None) -> str:
    if deadline_s is None:
        return "Please stop your environments and tasks there."
    minutes = max(1, round(deadline_s / 60)) if deadline_s else 0
    what = "Environments there are stopped, and tasks wait for another host,"
    return f"{what} in {minutes} minutes; files in the home are kept."


async def overdue(db: AsyncSession) -> list[tuple[str, str]]:
    """Host and environment of everything that a drain's deadline has passed, and that nobody stops yet."""
    host, held, wanted = tables.Host, tables.Placement, tables.Environment
    rows = await db.execute(
        select(host.id, wanted.id)
        .join(held, held.host_id == host.id)
        .join(wanted, wanted.id == held.environment_id)
        .where(
            host.operational == "draining",
            host.drain_deadline < func.now(),
            held.released_at.is_(None),
            wanted.desired == "running",
            wanted.status.not_in(["failed", "deleted"]),
        )
        .order_by(host.id, wanted.id)
    )
    return [(host_id, environment_id) for host_id, environment_id in rows]


async def overdue_tasks(db: AsyncSession) -> list[tuple[str, str]]:
    """Host and task of the same."""
    host, attempt, task = tables.Host, tables.Attempt, tables.Task
    rows = await db.execute(
        select(host.id, attempt.task_id)
        .join(attempt, attempt.host_id == host.id)
        .join(task, task.id == attempt.task_id)
        .where(
            host.operational == "draining",
            host.drain_deadline < func.now(),
            attempt.finished_at.is_(None),
            attempt.stop_reason.is_(None),
            task.stop_requested_at.is_(None),
        )
        .order_by(host.id, attempt.task_id)
    )
    return [(host_id, task_id) for host_id, task_id in rows]


async def send_back(db: AsyncSession, *, host_id: str, task_id: str) -> None:
    """A task leaves a host that still drains, and goes on elsewhere."""
    await tasks.locked_with_hosts(db, task_id=task_id)
    row = await queries.found(db, host_id)
    if row.operational == "draining":
        message = f"Host {row.name} is being emptied."
        await tasks.give_way(
            db, task_id=task_id, host_id=host_id, reason=Reason.HOST_DRAINED, message=message
        )


async def stop_overdue(db: AsyncSession, *, host_id: str, environment_id: str) -> None:
    """The normal stop, if the host still drains: its placement is released on proof, like any other."""
    row = await holds.lock_host(db, host_id=host_id)
    environment = await environment_queries.lock(db, environment_id=environment_id)
    if row is None or row.operational != "draining" or environment is None:
        return
    held = await environment_queries.live_placement(db, environment_id=environment_id)
    if held is None or held.host_id != host_id or environment.desired != "running":
        return
    await stop.end(
        db,
        environment=environment,
        desired="stopped",
        reason=Reason.HOST_DRAINED,
        message=f"Stopped, because host {row.name} is being emptied.",
        actor=SYSTEM,
    )


async def emptied(db: AsyncSession) -> list[str]:
    """Hosts whose drain is over, and of which nobody was told that yet."""
    host, held = tables.Host, tables.Placement
    live = select(held.id).where(held.host_id == host.id, held.released_at.is_(None)).exists()
    rows = await db.scalars(
        select(host.id).where(host.operational == "draining", host.drained_at.is_(None), ~live)
    )
    return list(rows)


async def finish_drain(db: AsyncSession, *, host_id: str) -> None:
    """Say once that a draining host is empty. It stays draining until an admin says what comes next."""
    row = await holds.lock_host(db, host_id=host_id)
    if row is None or row.operational != "draining" or row.drained_at is not None:
        return
    if await queries.count_live(db, host_id=host_id):
        return
    await queries.change(db, row, drained_at=func.now())
    await events.record(
        db,
        kind="host.drained",
        subject_type="host",
        subject_id=host_id,
        actor=SYSTEM,
        message=f"Host {row.name} is empty.",
    )
