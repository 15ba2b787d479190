"""What becomes of the work of suspended and deleted accounts."""

from __future__ import annotations

import contextlib

from sqlalchemy import ColumnElement, func, or_, select
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
from remotegpu_server.tasks.service import stop as tasks

_BATCH = 500
_GOING = tables.Task.status.in_(["pending", "assigned", "running"])
"""Says no more than that it has not ended; an index knows it by these words."""


async def withdraw_and_stop(work: Work) -> None:
    """Take what waits out of the queue, and stop what runs when its time has come; one transaction each."""
    environment = tables.Environment
    for environment_id in await _due(work, environment, environment.desired == "running"):
        with by_itself("suspensions", environment_id), contextlib.suppress(StateConflict):
            async with work.session() as db:
                await _stop(db, environment_id)  # a conflict: it moved meanwhile; the next pass looks again
    task = tables.Task
    for task_id in await _due(work, task, _GOING, task.stop_requested_at.is_(None)):
        with by_itself("suspensions", task_id), contextlib.suppress(StateConflict):
            async with work.session() as db:
                await _stop_task(db, task_id)


async def _due(
    work: Work, row: type[tables.Environment | tables.Task], *going: ColumnElement[bool]
) -> list[str]:
    user, employer, host = tables.User, aliased(tables.Customer), aliased(tables.Customer)
    waits = (row.status == "pending") & or_(
        user.status != "active", employer.status != "active", host.status != "active"
    )
    stop_at = func.least(user.stop_environments_at, employer.stop_environments_at, host.stop_environments_at)
    async with work.session() as db:
        found = await db.scalars(
            select(row.id)
            .join(user, user.id == row.owner_id)
            .join(employer, employer.id == user.customer_id)
            .join(host, host.id == row.customer_id)
            .where(*going, waits | (stop_at <= func.now()))
            .order_by(row.id)
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


async def _stop_task(db: AsyncSession, task_id: str) -> None:
    task = await tasks.locked_with_hosts(db, task_id=task_id)
    if task is not None:
        waits = task.status == "pending"
        words = "Not started, because the account is suspended." if waits else "Its account is suspended."
        await tasks.end(db, task=task, reason=Reason.SUSPENDED, message=words, actor=SYSTEM)


LOOP = Loop(name="suspensions", every_s=2.0, run=withdraw_and_stop, wake=WAKE)
