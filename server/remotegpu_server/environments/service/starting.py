"""Starting an environment in the place that was taken for it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.environments import EnvironmentStatus, Reason
from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import holds, placement, placing
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.environments import lifecycle
from remotegpu_server.placing import Launch, open_env, seal_env
from remotegpu_server.reservations import enforcement as reservations
from remotegpu_server.tokens import service as tokens


async def place(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    image: tables.Image,
    ahead: Sequence[placement.Ahead],
    launch: Launch,
    actor: Actor,
) -> placement.Refusal | None:
    """Move a pending environment to ``starting`` on a host, or say why not. Raises :class:`QuotaExceeded`."""

    async def holder(_: AsyncSession, __: tables.Host, ___: int) -> dict[str, str]:
        return {"environment_id": environment.id}

    found = await placing.take(db, ask=environment, image=image, ahead=ahead, holder=holder)
    if isinstance(found, placement.Refusal):
        return found
    await _started(db, environment=environment, choice=found[0], launch=launch, actor=actor)
    return None


async def _started(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    choice: placement.Choice,
    launch: Launch,
    actor: Actor,
) -> None:
    """Give the generation its token, and move it to ``starting``."""
    what = f" with {len(choice.gpus)} x {choice.gpus[0].model}" if choice.gpus else ""
    note = f" {choice.home_note}" if choice.home_note else ""
    await lifecycle.move(
        db,
        environment=environment,
        to=EnvironmentStatus.STARTING,
        reason=Reason.PLACED,
        message=f"Placed on {choice.host.name}{what}.{note}",
        actor=actor,
        secret_env=await secret_env_of_start(db, environment=environment, launch=launch),
        observed="absent",
        progress_percent=None,
    )
    await holds.bump_revision(db, host_id=choice.host.id)
    if environment.reservation_id is not None:
        await reservations.used(db, reservation_id=environment.reservation_id)
    notify(db, "queue")


async def secret_env_of_start(
    db: AsyncSession, *, environment: tables.Environment, launch: Launch
) -> bytes | None:
    """The secret variables of one start, sealed: those it was asked for with, and a token of its own."""
    minted = await tokens.mint(
        db,
        kind=TokenKind.WORKLOAD,
        scopes=[Scope.NOTEBOOK],
        name=environment.name,
        user_id=environment.owner_id,
        environment_id=environment.id,
    )
    own = {
        "REMOTEGPU_TOKEN": minted.secret,
        "REMOTEGPU_URL": launch.workload_url,
        "REMOTEGPU_ENVIRONMENT_ID": environment.id,
    }
    return seal_env(launch.vault, open_env(launch.vault, environment.secret_env) | own)
