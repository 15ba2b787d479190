"""The one place that moves an environment's status, and that releases what it holds.

Every move is one UPDATE guarded by id, generation and the status it starts from, with its event in the same
transaction. The caller has locked the row (``queries.lock``), so the guard failing means a bug or a stale
caller, never a race to retry.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import StateConflict
from remotegpu.types.environments import EnvironmentStatus, Reason
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.transitions import TRANSITIONS
from remotegpu_server.events import service as events
from remotegpu_server.notifications import service as notifications
from remotegpu_server.tokens import service as tokens

Status = EnvironmentStatus
ENDED = frozenset({Status.STOPPED, Status.FAILED, Status.DELETED})


def project(*, desired: str, observed: str, placed: bool, silent: bool, status: str) -> Status:
    """The public status from what is wanted, what was seen, and whether something is held.

    ``status`` is the present one: a generation that failed stays failed until a new start, and a new start
    is what makes it ``pending`` again.
    """
    if not placed:
        if desired != "running":
            return Status.DELETED if desired == "deleted" else Status.STOPPED
        return Status(status) if status in (Status.FAILED, Status.PENDING) else Status.FAILED
    if status == Status.FAILED:
        return Status.FAILED
    if silent:
        return Status.UNREACHABLE
    if desired != "running":
        return Status.STOPPING
    if observed in ("exited", "failed"):
        return Status.FAILED
    return Status.RUNNING if observed == "running" else Status.STARTING


async def move(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    to: Status,
    reason: Reason,
    message: str,
    actor: Actor,
    **values: Any,
) -> None:
    """Write a status with its reason and event; ``values`` are further columns of the same UPDATE.

    Raises :class:`StateConflict` when the move is not in the table or the row has moved meanwhile.
    """
    before = environment.status
    if to != before and to not in TRANSITIONS[before]:
        raise StateConflict(f"Environment {environment.name} is {before}; it cannot become {to}.")
    if to in ENDED:
        values |= {"secret_env": None, "progress_percent": None, "address": None, "endpoints": {}}
        values |= {"deadline_at": None, "idle_since": None, "idle_stage": None, "idle_stop_at": None}
    if to in ENDED and before not in ENDED:
        values |= {"stopped_at": func.now()}
    row = tables.Environment
    changed = await db.scalar(
        update(row)
        .where(row.id == environment.id, row.generation == environment.generation, row.status == before)
        .values(status=str(to), reason=str(reason), message=message, **values)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    if changed is None:
        raise StateConflict(
            f"Environment {environment.name} changed meanwhile.", hint="Look again, then retry."
        )
    if actor.kind == "system" and to != before:
        await audit.record(
            db,
            actor=actor,
            action=f"environments.{to}",
            outcome="done",
            resource_type="environments",
            resource_id=environment.id,
            detail={"old": before, "reason": str(reason)},
        )
    if to in ENDED or to is Status.PENDING:
        await tokens.revoke_of_environment(db, environment.id)
    await events.record(
        db,
        kind="environment.status",
        subject_type="environment",
        subject_id=environment.id,
        actor=actor,
        reason=str(reason),
        message=message,
        data={
            "from": before,
            "to": str(to),
            "generation": environment.generation,
            "progress_percent": environment.progress_percent,
        },
        customer_id=environment.customer_id,
        user_id=environment.owner_id,
        workspace_id=environment.workspace_id,
    )


async def tell_owner(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    kind: str,
    reason: Reason,
    level: notifications.Level,
    message: str,
    data: dict[str, Any],
    actor: Actor,
) -> None:
    """Something that is no move of the status, and that its owner must know: an event and a notification."""
    await events.record(
        db,
        kind=kind,
        subject_type="environment",
        subject_id=environment.id,
        actor=actor,
        reason=str(reason),
        message=message,
        data=data,
        customer_id=environment.customer_id,
        user_id=environment.owner_id,
        workspace_id=environment.workspace_id,
    )
    await notifications.tell(
        db,
        user_ids=[environment.owner_id],
        kind=kind,
        level=level,
        message=message,
        subject_type="environment",
        subject_id=environment.id,
        data=data,
    )


async def settle_released(
    db: AsyncSession, *, environment: tables.Environment, reason: Reason, message: str, actor: Actor
) -> None:
    """After a release: the status of an environment without a placement.

    Moves over the states in between where the table asks for it (``unreachable``, ``stopping``, ``stopped``).
    """
    to = project(
        desired=environment.desired,
        observed=environment.observed,
        placed=False,
        silent=False,
        status=environment.status,
    )
    if environment.desired != "running":
        if environment.status in (Status.STARTING, Status.RUNNING, Status.UNREACHABLE):
            await move(
                db, environment=environment, to=Status.STOPPING, reason=reason, message=message, actor=actor
            )
        if environment.status == Status.FAILED and to is Status.STOPPED:
            return
    if environment.status != to:
        await move(db, environment=environment, to=to, reason=reason, message=message, actor=actor)


async def host_is_silent(db: AsyncSession, *, host_id: str) -> bool:
    """Whether the host counts as unreachable."""
    seen = await db.scalar(select(tables.Host.connection).where(tables.Host.id == host_id))
    return seen in ("unreachable", "lost")
