"""Liveness by the database's clock."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments.service import observe
from remotegpu_server.events import service as events
from remotegpu_server.loops import Loop, Work

MASS_SHARE = 0.55
MASS_HOSTS = 3
"""So many hosts silent at once say more about this server's network than about the hosts."""
MASS_EVENT_PAUSE = timedelta(minutes=5)


async def judge_silence(work: Work) -> None:
    """Mark silent hosts suspect, then unreachable. Nobody is judged in the grace after a start."""
    settings = work.settings
    if work.led_for_s() < settings.restart_grace_s:
        return
    row = tables.Host
    async with work.session() as db:
        heard = (
            await db.execute(
                select(
                    row.id,
                    row.connection,
                    func.extract("epoch", func.now() - row.last_heartbeat_at).label("silent"),
                ).where(row.connection.in_(["online", "suspect", "unreachable"]))
            )
        ).all()
        silent = [host for host in heard if host.silent > settings.suspect_after_s]
        fresh = [host for host in silent if host.connection != "unreachable"]
        if fresh and len(silent) >= MASS_HOSTS and len(silent) >= MASS_SHARE * len(heard):
            await _record_mass_silence(db, silent=len(silent), known=len(heard))
            return
    for host in silent:
        to = "unreachable" if host.silent > settings.unreachable_after_s else "suspect"
        if to != host.connection and host.connection != "unreachable":
            async with work.session() as db:
                await _silent(db, host_id=host.id, to=to, silent_s=_silence_s(work, to))


def _silence_s(work: Work, to: str) -> float:
    """The silence after which a host counts as ``to``."""
    return work.settings.unreachable_after_s if to == "unreachable" else work.settings.suspect_after_s


async def _silent(db: AsyncSession, *, host_id: str, to: str, silent_s: float) -> None:
    """Guarded by the heartbeat's time: one that came meanwhile wins."""
    row = tables.Host
    host = await db.scalar(
        update(row)
        .where(
            row.id == host_id,
            row.connection != to,
            row.connection.in_(["online", "suspect"]),
            row.last_heartbeat_at < func.now() - timedelta(seconds=silent_s),
        )
        .values(connection=to)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    if host is None:
        return
    touched = await observe.host_silent(db, host=host, actor=SYSTEM) if to == "unreachable" else 0
    await events.record(
        db,
        kind="host.connection",
        subject_type="host",
        subject_id=host.id,
        actor=SYSTEM,
        reason="host_silent",
        message=f"Host {host.name} is {to}: no heartbeat for more than {silent_s:g} seconds.",
        data={"to": to, "environments": touched},
    )


async def _record_mass_silence(db: AsyncSession, *, silent: int, known: int) -> None:
    event = tables.Event
    recent = await db.scalar(
        select(func.count())
        .select_from(event)
        .where(event.kind == "host.mass_silence", event.at > func.now() - MASS_EVENT_PAUSE)
    )
    if not recent:
        await events.record(
            db,
            kind="host.mass_silence",
            subject_type="host",
            subject_id="all",
            actor=SYSTEM,
            reason="host_silent",
            message=f"{silent} of {known} hosts are silent: this server may be cut off. Nothing is decided.",
            data={"silent": silent, "known": known},
        )


LIVENESS = Loop(name="host-liveness", every_s=2.0, run=judge_silence)
