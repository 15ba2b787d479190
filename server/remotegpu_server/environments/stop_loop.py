"""Background passes that warn of stops and make them: stop times, lifetimes, unused environments."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import func, select

from remotegpu.errors import StateConflict
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments import queries
from remotegpu_server.environments.service import idle, stop, stop_times
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import (
    ENVIRONMENT_FIRST_WARNING_S,
    ENVIRONMENT_LAST_WARNING_S,
)

_log = structlog.get_logger(__name__)


async def follow_deadlines(work: Work) -> None:
    """Warn where a deadline is near, stop where it has come."""
    row = tables.Environment
    async with work.session() as db:
        first = await platform_settings.value(db, ENVIRONMENT_FIRST_WARNING_S)
        last = await platform_settings.value(db, ENVIRONMENT_LAST_WARNING_S)
        near = timedelta(seconds=max(first, last))
        found = await db.execute(
            select(row.id, row.deadline_at <= func.now())
            .where(row.desired == "running", row.deadline_at <= func.now() + near)
            .order_by(row.deadline_at, row.id)
        )
        due = found.all()
    for environment_id, over in due:
        with by_itself("stop-times", environment_id):
            async with work.session() as db:
                environment = await queries.lock(db, environment_id=environment_id)
                if environment is None or environment.desired != "running" or environment.deadline_at is None:
                    continue
                if not over:
                    await stop_times.warn(db, environment=environment, actor=SYSTEM)
                elif environment.deadline_at <= await queries.now(db):
                    await stop.end_by_itself(
                        db,
                        environment=environment,
                        reason=stop_times.reason(environment),
                        message=f"{environment.name} was stopped: its time was over. Its files are kept.",
                    )


async def find_unused(work: Work) -> None:
    """One look at everything that runs; then one short transaction for each that goes a step on."""
    async with work.session() as db:
        looks = await idle.look(db)
    for seen in looks:
        step = idle.next_step(seen)
        if step is None:
            continue
        with by_itself("idle", seen.environment_id):
            try:
                async with work.session() as db:
                    await idle.take_step(db, seen=seen, step=step)
            except StateConflict:
                _log.info("idle_step_overtaken", environment=seen.environment_id, step=step)


DEADLINES = Loop(name="stop-times", every_s=5.0, run=follow_deadlines)
IDLE = Loop(name="idle", every_s=20.0, run=find_unused)
