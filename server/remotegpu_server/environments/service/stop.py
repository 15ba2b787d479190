"""Ending an environment. Without a placement it is immediate; with one it waits for proof of absence."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound, StateConflict
from remotegpu.types.environments import Environment, EnvironmentStatus, Reason
from remotegpu_server import authz, holds
from remotegpu_server.authz import SYSTEM, Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.environments import convert, lifecycle, queries
from remotegpu_server.events import service as events

Status = EnvironmentStatus


async def stop_environment(db: AsyncSession, *, actor: Actor, environment_id: str) -> Environment:
    """Stop it; legal in every status, and harmless when it is stopping or stopped."""
    environment = await locked(db, actor=actor, action=Action.ENVIRONMENT_STOP, environment_id=environment_id)
    if environment.desired == "running":
        await end(
            db,
            environment=environment,
            desired="stopped",
            reason=Reason.REQUESTED,
            message="Stopped.",
            actor=actor,
        )
    elif environment.preempt_at is not None:
        await _keep_stopped(db, environment=environment, actor=actor)
    (bundle,) = await queries.bundles(db, ids=[environment.id])
    return convert.to_wire(bundle)


async def _keep_stopped(db: AsyncSession, *, environment: tables.Environment, actor: Actor) -> None:
    """It was preempted and would wait again once it is gone: not any more."""
    await lifecycle.move(
        db,
        environment=environment,
        to=Status(environment.status),
        reason=Reason.REQUESTED,
        message="Stopped; it does not go back into the queue.",
        actor=actor,
        preempt_at=None,
    )


async def delete_environment(db: AsyncSession, *, actor: Actor, environment_id: str) -> None:
    """Stop it and forget it; its files stay in the owner's home."""
    environment = await locked(
        db, actor=actor, action=Action.ENVIRONMENT_WRITE, environment_id=environment_id
    )
    if environment.desired != "deleted":
        await end(
            db,
            environment=environment,
            desired="deleted",
            reason=Reason.REQUESTED,
            message="Deleted.",
            actor=actor,
        )


async def end(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    desired: str,
    reason: Reason,
    message: str,
    actor: Actor,
) -> None:
    """Want a locked environment ``stopped`` or ``deleted``."""
    held = await queries.live_placement(db, environment_id=environment.id)
    if desired == "stopped" and environment.status in lifecycle.ENDED:
        return
    environment = await queries.store(
        db,
        environment,
        desired=desired,
        preempt_at=environment.preempt_at if reason is Reason.PREEMPTED else None,
    )
    if held is None:
        await lifecycle.settle_released(
            db, environment=environment, reason=reason, message=message, actor=actor
        )
        return
    await holds.bump_revision(db, host_id=held.host_id)
    if environment.status in (Status.FAILED, Status.STOPPING):
        return  # its agent is removing it already; the proof of absence settles the rest
    silent = await lifecycle.host_is_silent(db, host_id=held.host_id)
    waits = " Its host is silent; this happens when it is back." if silent else ""
    await lifecycle.move(
        db,
        environment=environment,
        to=Status.STOPPING,
        reason=reason,
        message=f"Stopping.{waits}",
        actor=actor,
        progress_percent=None,
    )


async def end_by_itself(
    db: AsyncSession, *, environment: tables.Environment, reason: Reason, message: str
) -> None:
    """Stop a locked environment because of its own times, and tell its owner."""
    await end(db, environment=environment, desired="stopped", reason=reason, message=message, actor=SYSTEM)
    await lifecycle.tell_owner(
        db,
        environment=environment,
        kind="environment.ended",
        reason=reason,
        level="warning",
        message=message,
        data={},
        actor=SYSTEM,
    )


async def release_environment(db: AsyncSession, *, actor: Actor, environment_id: str) -> Environment:
    """Give its GPUs back without proof that its container is gone: an admin's word, recorded as such.

    The agent is told to remove the container as soon as it is heard again.
    """
    environment = await locked(
        db, actor=actor, action=Action.ENVIRONMENT_RELEASE, environment_id=environment_id
    )
    held = await queries.live_placement(db, environment_id=environment.id)
    if held is None:
        raise StateConflict(f"{environment.name} holds nothing.")
    gpus = (await queries.held_gpus(db, environment_ids=[environment.id])).get(environment.id, [])
    await holds.release(db, placement=held, proof="admin")
    message = f"Released by {actor.name} without proof that it is gone."
    await lifecycle.settle_released(
        db, environment=environment, reason=Reason.FORCED, message=message, actor=actor
    )
    await events.record(
        db,
        kind="environment.released",
        subject_type="environment",
        subject_id=environment.id,
        actor=actor,
        reason=str(Reason.FORCED),
        message=message,
        data={"proof": "admin", "host_id": held.host_id, "gpus": [one.gpu.uuid for one in gpus]},
        customer_id=environment.customer_id,
        user_id=environment.owner_id,
        workspace_id=environment.workspace_id,
    )
    (bundle,) = await queries.bundles(db, ids=[environment.id])
    return convert.to_wire(bundle)


async def withdraw_waiting(db: AsyncSession, *, environment_id: str, actor: Actor) -> None:
    """Take a suspended account's environment out of the queue; one that got its host meanwhile is kept."""
    environment = await queries.lock(db, environment_id=environment_id)
    if environment is None or environment.status != Status.PENDING:
        return
    await end(
        db,
        environment=environment,
        desired="stopped",
        reason=Reason.SUSPENDED,
        message="Not started, because the account is suspended.",
        actor=actor,
    )


async def locked(
    db: AsyncSession, *, actor: Actor, action: Action, environment_id: str
) -> tables.Environment:
    """The environment's row, locked, if it is there and the actor may do ``action`` with it."""
    environment = await queries.lock(db, environment_id=environment_id)
    if environment is None or environment.status == "deleted":
        raise NotFound("There is no such environment.")
    authz.require(
        actor,
        action,
        user_id=environment.owner_id,
        customer_id=environment.customer_id,
        workspace_id=environment.workspace_id,
        environment_id=environment.id,
        noun="environment",
    )
    return environment
