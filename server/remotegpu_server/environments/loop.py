"""Background passes: the queue, and starts that nobody reports about."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import QuotaExceeded, StateConflict
from remotegpu.types.environments import EnvironmentStatus, Reason
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments import lifecycle, queries
from remotegpu_server.environments.service import observe, placing, stop
from remotegpu_server.environments.service.placing import Launch
from remotegpu_server.loops import Loop, Work
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import ENVIRONMENT_START_SILENCE_S

_log = structlog.get_logger(__name__)


async def place_pending(work: Work) -> None:
    """First in, first out; one short transaction per request: a bad one holds nobody up."""
    launch = Launch(vault=work.vault, workload_url=work.settings.workload_url)
    async with work.session() as db:
        ids = (await db.scalars(queries.pending_ids())).all()
    for environment_id in ids:
        try:
            async with work.session() as db:
                await place_one(db, environment_id=environment_id, launch=launch)
        except StateConflict:
            _log.info("queue_item_moved", environment=environment_id)


async def place_one(db: AsyncSession, *, environment_id: str, launch: Launch) -> None:
    """Start one pending environment, or renew the reason why it waits. A suspended account starts nothing."""
    row, user, customer = tables.Environment, tables.User, tables.Customer
    found = (
        await db.execute(
            select(row, tables.Image, (user.status == "active") & (customer.status == "active"))
            .join(tables.Image, tables.Image.id == row.image_id)
            .join(user, user.id == row.owner_id)
            .join(customer, customer.id == user.customer_id)
            .where(row.id == environment_id, row.status == "pending", row.desired == "running")
            .execution_options(populate_existing=True)
        )
    ).one_or_none()
    if found is None:
        return
    environment, image, active = found
    if not active:
        await stop.withdraw_waiting(db, environment_id=environment.id, actor=SYSTEM)
        return
    ahead = await placing.waiting_ahead(db, of=environment)
    try:
        refusal = await placing.place(
            db, environment=environment, image=image, ahead=ahead, launch=launch, actor=SYSTEM
        )
    except QuotaExceeded as refused:
        reason, message = Reason.QUOTA, str(refused)
    else:
        if refusal is None:
            return
        reason, message = refusal.reason, refusal.detail
    if (environment.reason, environment.message) != (reason, message):
        await lifecycle.move(
            db,
            environment=environment,
            to=EnvironmentStatus.PENDING,
            reason=reason,
            message=message,
            actor=SYSTEM,
        )


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


QUEUE = Loop(name="queue", every_s=lambda settings: settings.queue_tick_s, run=place_pending, wake="queue")
STARTS = Loop(name="silent-starts", every_s=30.0, run=fail_silent_starts)
