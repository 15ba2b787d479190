"""Dedications by the database's clock: begun, reminded of, ended, cleaned."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.dedications import cleanup, lifecycle, service
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import DEDICATION_GRACE_S, DEDICATION_STEP_LIMIT_S


async def follow(work: Work) -> None:
    """One short transaction for each dedication that has something to do."""
    row = tables.Dedication
    soon = timedelta(days=max(service.REMINDER_DAYS))
    async with work.session() as db:
        grace_s = await platform_settings.value(db, DEDICATION_GRACE_S)
        step_limit_s = await platform_settings.value(db, DEDICATION_STEP_LIMIT_S)
        due = (
            await db.execute(
                select(row.id, row.status)
                .where(
                    ((row.status == "scheduled") & (row.starts_at <= func.now()))
                    | ((row.status == "active") & (row.ends_at <= func.now() + soon))
                    | (row.status.in_(["grace", "cleaning"]))
                )
                .order_by(row.ends_at, row.id)
            )
        ).all()
    for dedication_id, status in due:
        with by_itself("dedications", dedication_id):
            async with work.session() as db:
                if status == "scheduled":
                    await service.activate(db, dedication_id=dedication_id)
                elif status == "cleaning":
                    await cleanup.advance(db, dedication_id=dedication_id, step_limit_s=step_limit_s)
                else:
                    await service.remind(db, dedication_id=dedication_id)
                    await _end_in_time(db, dedication_id=dedication_id, grace_s=grace_s)


async def _end_in_time(db: AsyncSession, *, dedication_id: str, grace_s: float) -> None:
    dedication = await lifecycle.locked(db, dedication_id=dedication_id)
    past = await db.scalar(select(func.extract("epoch", func.now() - dedication.ends_at))) or 0.0
    if dedication.status == "active" and past >= 0:
        await service.begin_grace(db, dedication=dedication, actor=SYSTEM)
    elif dedication.status == "grace" and past >= grace_s:
        await cleanup.begin(
            db,
            dedication=dedication,
            message="The grace is over; the host is cleaned.",
            reason=dedication.end_reason or "expired",
            actor=SYSTEM,
        )


LOOP = Loop(name="dedications", every_s=5.0, run=follow)
