"""Background pass: starts that nobody reports about."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select

from remotegpu.types.environments import Reason
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments import queries
from remotegpu_server.environments.service import observe
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import ENVIRONMENT_START_SILENCE_S


async def fail_silent_starts(work: Work) -> None:
    """Fail starts that a host which speaks says nothing about; its agent is told to remove them."""
    row, event, host, held = tables.Environment, tables.Event, tables.Host, tables.Placement
    last_word = (
        select(func.max(event.at))
        .where(event.subject_type == "environment", event.subject_id == row.id)
        .scalar_subquery()
    )
    async with work.session() as db:
        silence = timedelta(seconds=await platform_settings.value(db, ENVIRONMENT_START_SILENCE_S))
        overdue = await db.execute(
            select(row.id, host.id)
            .join(held, (held.environment_id == row.id) & held.released_at.is_(None))
            .join(host, host.id == held.host_id)
            .where(
                row.status == "starting",
                host.connection == "online",
                held.placed_at < func.now() - silence,
                last_word < func.now() - silence,
            )
        )
        found = overdue.all()
    for environment_id, host_id in found:
        with by_itself("silent-starts", environment_id):
            async with work.session() as db:
                environment = await queries.lock(db, environment_id=environment_id)
                if environment is None or environment.status != "starting":
                    continue
                minutes = int(silence.total_seconds() // 60)
                await observe.fail(
                    db,
                    environment=environment,
                    host_id=host_id,
                    reason=Reason.START_TIMEOUT,
                    message=f"Its host said nothing about this start for {minutes} minutes.",
                    actor=SYSTEM,
                )


STARTS = Loop(name="silent-starts", every_s=30.0, run=fail_silent_starts)
