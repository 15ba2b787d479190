"""What becomes of the work of suspended and deleted accounts."""

from __future__ import annotations

import contextlib

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from remotegpu.errors import StateConflict
from remotegpu.types.environments import Reason
from remotegpu_server.authz import SYSTEM
from remotegpu_server.customers.suspension import WAKE
from remotegpu_server.db import tables
from remotegpu_server.environments import queries
from remotegpu_server.environments.service import stop
from remotegpu_server.loops import Loop, Work, by_itself

_BATCH = 500


async def withdraw_and_stop(work: Work) -> None:
    """Take what waits out of the queue, and stop what runs when its time has come; one transaction each."""
    for environment_id in await _due(work):
        with by_itself("suspensions", environment_id), contextlib.suppress(StateConflict):
            async with work.session() as db:
                await _stop(db, environment_id)  # a conflict: it moved meanwhile; the next pass looks again


async def _due(work: Work) -> list[str]:
    environment, user = tables.Environment, tables.User
    employer, host = aliased(tables.Customer), aliased(tables.Customer)
    waits = (environment.status == "pending") & or_(
        user.status != "active", employer.status != "active", host.status != "active"
    )
    stop_at = func.least(user.stop_environments_at, employer.stop_environments_at, host.stop_environments_at)
    async with work.session() as db:
        found = await db.scalars(
            select(environment.id)
            .join(user, user.id == environment.owner_id)
            .join(employer, employer.id == user.customer_id)
            .join(host, host.id == environment.customer_id)
            .where(environment.desired == "running", waits | (stop_at <= func.now()))
            .order_by(environment.id)
            .limit(_BATCH)
        )
        return list(found)


async def _stop(db: AsyncSession, environment_id: str) -> None:
    environment = await queries.lock(db, environment_id=environment_id)
    if environment is None or environment.desired != "running":
        return
    waits = environment.status == "pending"
    words = "Not started, because the account is suspended." if waits else "Its account is suspended."
    await stop.end(
        db,
        environment=environment,
        desired="stopped",
        reason=Reason.SUSPENDED,
        message=words,
        actor=SYSTEM,
    )


LOOP = Loop(name="suspensions", every_s=2.0, run=withdraw_and_stop, wake=WAKE)
