"""Liveness by the database's clock, and drains that end."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments.service import observe
from remotegpu_server.events import service as events
from remotegpu_server.hosts.service import operate
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import HOST_LOST_AFTER_S
from remotegpu_server.settings import Settings

MASS_SHARE = 0.55
MASS_HOSTS = 3
"""So many hosts silent at once say more about this server's network than about the hosts."""
MASS_EVENT_PAUSE = timedelta(minutes=5)


_ORDER = ("online", "suspect", "unreachable", "lost")
"""How silence is told, the longer the further."""


async def judge_silence(work: Work) -> None:
    """Mark silent hosts suspect, then unreachable, then lost. Nobody is judged in the grace after a start."""
    if work.led_for_s() < work.settings.restart_grace_s:
        return
    row = tables.Host
    async with work.session() as db:
        heard = (
            await db.execute(
                select(
                    row.id,
                    row.connection,
                    func.extract("epoch", func.now() - row.last_heartbeat_at).label("silent"),
                ).where(row.connection.in_(_ORDER), row.operational != "retired")
            )
        ).all()
        silent = [host for host in heard if host.silent > work.settings.suspect_after_s]
        fresh = [host for host in silent if host.connection in ("online", "suspect")]
        if len(silent) >= MASS_HOSTS and len(silent) >= MASS_SHARE * len(heard):
            if fresh:
                await _record_mass_silence(db, silent=len(silent), known=len(heard))
            return
        lost_after_s = await platform_settings.value(db, HOST_LOST_AFTER_S)
    for host in silent:
        to, silent_s = _verdict(work.settings, host.silent, lost_after_s)
        if _ORDER.index(to) > _ORDER.index(host.connection):
            with by_itself("host-liveness", host.id):
                async with work.session() as db:
                    await _silent(db, host_id=host.id, to=to, silent_s=silent_s)


def _verdict(settings: Settings, silent_s: float, lost_after_s: float) -> tuple[str, float]:
    """What a silence means, and the silence after which it does."""
    if silent_s > max(lost_after_s, settings.unreachable_after_s):
        return "lost", max(lost_after_s, settings.unreachable_after_s)
    if silent_s > settings.unreachable_after_s:
        return "unreachable", settings.unreachable_after_s
    return "suspect", settings.suspect_after_s


async def _silent(db: AsyncSession, *, host_id: str, to: str, silent_s: float) -> None:
    """Guarded by the heartbeat's time: one that came meanwhile wins. ``lost`` moves no environment: they
    have been unreachable since the host was, and stay so until it is heard.
    """
    row = tables.Host
    host = await db.scalar(
        update(row)
        .where(
            row.id == host_id,
            row.connection.in_(_ORDER[: _ORDER.index(to)]),
            row.last_heartbeat_at < func.now() - timedelta(seconds=silent_s),
        )
        .values(connection=to)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    if host is None:
        return
    touched = await observe.host_silent(db, host=host, actor=SYSTEM) if to in ("unreachable", "lost") else 0
    message = f"Host {host.name} is {to}: no heartbeat for more than {silent_s:g} seconds."
    await events.record(
        db,
        kind="host.connection",
        subject_type="host",
        subject_id=host.id,
        actor=SYSTEM,
        reason="host_silent",
        message=message,
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


async def follow_drains(work: Work) -> None:
    """Stop what a drain's deadline has passed, one short transaction each, and say when a host is empty."""
    async with work.session() as db:
        overdue = await operate.overdue(db)
    for host_id, environment_id in overdue:
        with by_itself("host-drains", environment_id):
            async with work.session() as db:
                await operate.stop_overdue(db, host_id=host_id, environment_id=environment_id)
    async with work.session() as db:
        overdue_tasks = await operate.overdue_tasks(db)
    for host_id, task_id in overdue_tasks:
        with by_itself("host-drains", task_id):
            async with work.session() as db:
                await operate.send_back(db, host_id=host_id, task_id=task_id)
    async with work.session() as db:
        emptied = await operate.emptied(db)
    for host_id in emptied:
        with by_itself("host-drains", host_id):
            async with work.session() as db:
                await operate.finish_drain(db, host_id=host_id)


DRAINS = Loop(name="host-drains", every_s=2.0, run=follow_drains)
