"""Changing an environment that exists: its names, and a new generation in the same place."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NameTaken, StateConflict
from remotegpu.types.environments import Environment, EnvironmentStatus, EnvironmentUpdate, Reason
from remotegpu_server import holds
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.session import violated_constraint
from remotegpu_server.environments import convert, lifecycle, queries
from remotegpu_server.environments.service import starting, stop_times
from remotegpu_server.environments.service.stop import locked
from remotegpu_server.events import service as events
from remotegpu_server.placing import Launch
from remotegpu_server.tokens import service as tokens

Status = EnvironmentStatus


async def rename(
    db: AsyncSession, *, actor: Actor, environment_id: str, body: EnvironmentUpdate
) -> Environment:
    """Change the names. The container's host name follows with its next start."""
    environment = await locked(
        db, actor=actor, action=Action.ENVIRONMENT_WRITE, environment_id=environment_id
    )
    wanted = body.model_dump(exclude_none=True)
    changes = {field: value for field, value in wanted.items() if value != getattr(environment, field)}
    if "name" in changes and environment.hub_managed:
        raise StateConflict(
            f"{environment.name} belongs to a server of the hub, which finds it by this name.",
            hint="Change display_name, or make a new server in the hub and delete this one.",
        )
    if changes:
        old = {field: getattr(environment, field) for field in changes}
        await _rename(db, environment=environment, changes=changes)
        audit.note(db, old=old, new=changes)
        await _record(db, environment, "environment.renamed", f"{actor.name} renamed it.", actor, changes)
    (bundle,) = await queries.bundles(db, ids=[environment.id])
    return convert.to_wire(bundle)


async def _rename(db: AsyncSession, *, environment: tables.Environment, changes: dict[str, Any]) -> None:
    try:
        async with db.begin_nested():
            await queries.store(db, environment, **changes)
    except IntegrityError as error:
        if violated_constraint(error) != "uq_environments_owner_name":
            raise
        raise NameTaken(
            f"Its owner has an environment {changes['name']} already.", hint="Choose another name."
        ) from error


async def restart(db: AsyncSession, *, actor: Actor, environment_id: str, launch: Launch) -> Environment:
    """A new generation on the same host with the same GPUs, which it never lets go of.

    Its agent removes the old container before it makes the new one; a late report of the old one is
    refused by its generation. Raises :class:`StateConflict` unless it runs or starts.
    """
    environment = await locked(
        db, actor=actor, action=Action.ENVIRONMENT_WRITE, environment_id=environment_id
    )
    held = await queries.live_placement(db, environment_id=environment.id)
    if held is None or environment.status not in (Status.RUNNING, Status.STARTING):
        raise StateConflict(
            f"{environment.name} is {environment.status}; only one that runs can be restarted.",
            hint=_instead(environment),
        )
    stop_at = await stop_times.stop_at_after_restart(db, environment=environment)
    await tokens.revoke_of_environment(db, environment.id)
    secret_env = await starting.secret_env_of_start(db, environment=environment, launch=launch)
    row, placement = tables.Environment, tables.Placement
    generation = environment.generation + 1
    await db.execute(
        update(placement)
        .where(placement.id == held.id)
        .values(generation=generation)
        .execution_options(synchronize_session=False)
    )
    moved: tables.Environment | None = await db.scalar(
        update(row)
        .where(row.id == environment.id, row.generation == environment.generation)
        .values(generation=generation)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert moved is not None, "the row is locked"
    await lifecycle.move(
        db,
        environment=moved,
        to=Status.STARTING,
        reason=Reason.RESTARTED,
        message="Restarting in the same place.",
        actor=actor,
        observed="absent",
        started_at=None,
        exit_code=None,
        log_tail=None,
        address=None,
        endpoints={},
        progress_percent=None,
        stop_at=stop_at,
        deadline_at=stop_at,
        deadline_warned_s=None,
        secret_env=secret_env,
        **stop_times.NOT_IDLE,
    )
    await holds.bump_revision(db, host_id=held.host_id)
    (bundle,) = await queries.bundles(db, ids=[environment.id])
    return convert.to_wire(bundle)


def _instead(environment: tables.Environment) -> str:
    if environment.status in lifecycle.ENDED:
        return f"Start it with `remotegpu env start {environment.name}`."
    if environment.status == Status.UNREACHABLE:
        return "Its host is silent. Try again when it is back."
    return "Try again when it runs."


async def _record(
    db: AsyncSession,
    environment: tables.Environment,
    kind: str,
    message: str,
    actor: Actor,
    data: dict[str, Any],
) -> None:
    await events.record(
        db,
        kind=kind,
        subject_type="environment",
        subject_id=environment.id,
        actor=actor,
        message=message,
        data=data,
        customer_id=environment.customer_id,
        user_id=environment.owner_id,
        workspace_id=environment.workspace_id,
    )
