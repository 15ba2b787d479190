"""Digests, and removing what is old."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.outbox import service as outbox
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import NOTIFICATION_DIGEST_EVERY_S, NOTIFICATION_KEEP_S

_PEOPLE = 200
_LINES = 100
"""Of one digest; the rest is counted."""
_SWEPT = 5000
_row = tables.Notification


async def write_digests(work: Work) -> None:
    """One mail to each person for whom something has waited long enough, in a transaction of its own."""
    async with work.session() as db:
        wait_s = await platform_settings.value(db, NOTIFICATION_DIGEST_EVERY_S)
        due = list(
            await db.scalars(
                select(_row.user_id)
                .where(_row.digest)
                .group_by(_row.user_id)
                .having(func.min(_row.created_at) < func.now() - timedelta(seconds=wait_s))
                .limit(_PEOPLE)
            )
        )
    for user_id in due:
        with by_itself("digests", user_id):
            async with work.session() as db:
                await _write(db, user_id=user_id)


async def _write(db: AsyncSession, *, user_id: str) -> None:
    taken = await db.scalars(
        update(_row)
        .where(_row.user_id == user_id, _row.digest)
        .values(digest=False)
        .returning(_row)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    news = sorted(
        (one for one in taken if one.read_at is None or not one.in_app), key=lambda one: one.created_at
    )
    if not news:
        return
    lines = [f"{one.created_at:%Y-%m-%d %H:%M} UTC  {one.level}: {one.message}" for one in news[:_LINES]]
    if len(news) > _LINES:
        lines.append(f"and {len(news) - _LINES} more: `remotegpu notifications list` shows them all")
    subject = news[0].message if len(news) == 1 else f"{len(news)} notifications"
    payload = {"subject": subject, "text": "\n".join(lines) + "\n"}
    await outbox.put(db, "mail", [outbox.Message(user_id=user_id, kind="digest", payload=payload)])


async def sweep(work: Work) -> None:
    """Remove what is older than notifications are kept, in batches."""
    while True:
        async with work.session() as db:
            keep_s = await platform_settings.value(db, NOTIFICATION_KEEP_S)
            old = (
                select(_row.id).where(_row.created_at < func.now() - timedelta(seconds=keep_s)).limit(_SWEPT)
            )
            removed = await db.scalars(delete(_row).where(_row.id.in_(old)).returning(_row.id))
            if len(removed.all()) < _SWEPT:
                return


DIGESTS = Loop(name="digests", every_s=30.0, run=write_digests)
SWEEP = Loop(name="notifications-sweep", every_s=600.0, run=sweep)
