"""An environment's turn in the queue: start it, ask the hub to, or renew the reason why it waits."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import QuotaExceeded
from remotegpu.types.environments import EnvironmentStatus, Reason
from remotegpu_server import placement
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments import lifecycle, queries
from remotegpu_server.environments.service import starting, stop
from remotegpu_server.hub_starts import service as hub_starts
from remotegpu_server.notifications import service as notifications
from remotegpu_server.placing import Launch


async def call_the_hub(db: AsyncSession, *, environment_id: str) -> None:
    """The turn of a kept place has come: the hub brings what a start needs, so it is asked first."""
    environment = await queries.lock(db, environment_id=environment_id)
    if environment is None or environment.status != "pending":
        return
    message = "Its turn has come; the hub is asked to start it."
    await hub_starts.set_due(db, environment_id=environment_id)
    await _still_waits(db, environment, Reason.HUB_START, message)
    await notifications.tell(
        db,
        user_ids=[environment.owner_id],
        kind="environment.turn",
        level="info",
        message=f"{environment.name}: {message}",
        subject_type="environment",
        subject_id=environment.id,
    )


async def start(
    db: AsyncSession, *, environment_id: str, ahead: Sequence[placement.Ahead], launch: Launch
) -> bool:
    """Start one pending environment, or renew the reason why it waits: False. A suspended account starts
    nothing.
    """
    row, user, customer = tables.Environment, tables.User, tables.Customer
    found = (
        await db.execute(
            select(row, tables.Image, (user.status == "active") & (customer.status == "active"))
            .join(tables.Image, tables.Image.id == row.image_id)
            .join(user, user.id == row.owner_id)
            .join(customer, customer.id == user.customer_id)
            .where(row.id == environment_id, row.status == "pending", row.desired == "running")
            .with_for_update(read=True, of=(user, customer))
            .execution_options(populate_existing=True)
        )
    ).one_or_none()
    if found is None:
        return True
    environment, image, active = found
    if not active:
        await stop.withdraw_waiting(db, environment_id=environment.id, actor=SYSTEM)
        return True
    try:
        refusal = await starting.place(
            db, environment=environment, image=image, ahead=ahead, launch=launch, actor=SYSTEM
        )
    except QuotaExceeded as refused:
        await _still_waits(db, environment, Reason.QUOTA, str(refused))
        return False
    if refusal is not None:
        await _still_waits(db, environment, refusal.reason, refusal.detail)
    return refusal is None


async def _still_waits(
    db: AsyncSession, environment: tables.Environment, reason: Reason, message: str
) -> None:
    if (environment.reason, environment.message) != (reason, message):
        await lifecycle.move(
            db,
            environment=environment,
            to=EnvironmentStatus.PENDING,
            reason=reason,
            message=message,
            actor=SYSTEM,
        )


async def wait(db: AsyncSession, *, environment_id: str, reason: Reason, message: str) -> None:
    """It still waits, and for something else."""
    environment = await queries.lock(db, environment_id=environment_id)
    if environment is not None and environment.status == "pending":
        await _still_waits(db, environment, reason, message)
