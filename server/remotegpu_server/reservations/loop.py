"""Reservations begin, end, and are given back when nobody comes."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, or_, select, update

from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import RESERVATION_GRACE_S
from remotegpu_server.reservations import service


async def turn(work: Work) -> None:
    """One pass over those whose time has come."""
    row = tables.Reservation
    async with work.session() as db:
        grace = timedelta(seconds=await platform_settings.value(db, RESERVATION_GRACE_S))
        begun = await db.scalars(
            update(row)
            .where(row.state == "scheduled", row.starts_at <= func.now())
            .values(state="active")
            .returning(row.id)
            .execution_options(synchronize_session=False)
        )
        if begun.all():
            notify(db, "queue")
        over = await db.execute(
            select(row.id, row.ends_at <= func.now()).where(
                row.ended_at.is_(None),
                or_(
                    row.ends_at <= func.now(),
                    row.used_at.is_(None)
                    & (func.greatest(row.starts_at, row.created_at) + grace <= func.now()),
                ),
            )
        )
        found = over.all()
    for reservation_id, at_end in found:
        with by_itself("reservations", reservation_id):
            async with work.session() as db:
                state = "ended" if at_end else "unused"
                await service.end(db, reservation_id=reservation_id, state=state, actor=SYSTEM)


LOOP = Loop(name="reservations", every_s=5.0, run=turn)
