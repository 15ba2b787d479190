"""Partitions made ahead and dropped, minutes and hours rolled up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, text

from remotegpu_server.db import samples
from remotegpu_server.db.samples import HOST_SAMPLES, HOURS, MINUTES, Partitioned
from remotegpu_server.loops import Loop, Work
from remotegpu_server.metrics import queries

AGAIN = timedelta(minutes=3)
"""The last minutes are made anew on each pass: rows may come in late."""
SETTLED = timedelta(minutes=10)
"""An hour is rolled up once, so long after its end."""
AT_ONCE = {HOST_SAMPLES: timedelta(minutes=5), MINUTES: timedelta(hours=1)}
"""At most so much is rolled up in one transaction."""
STATEMENT_S = 50
"""A thousand hosts have a million values a minute."""
_MINUTE, _HOUR = timedelta(minutes=1), timedelta(hours=1)


async def keep(work: Work) -> None:
    """One pass: nothing of it is wrong when it is done twice, or a day late."""
    async with work.session() as db:
        now = (await db.execute(select(func.now()))).scalar_one()
    await _partitions(work, now)
    await _roll_up(
        work, source=HOST_SAMPLES, target=MINUTES, width=_MINUTE, until=_begin_of(now, _MINUTE), again=AGAIN
    )
    until = _begin_of(now - SETTLED, _HOUR)
    await _roll_up(work, source=MINUTES, target=HOURS, width=_HOUR, until=until, again=timedelta(0))


async def _partitions(work: Work, now: datetime) -> None:
    for table in (HOST_SAMPLES, MINUTES, HOURS):
        async with work.session() as db:
            for day in (now.date(), now.date() + timedelta(days=1)):
                await samples.make_partition(db, table, day)
        gone = table.partition((now - table.kept).astimezone(UTC).date())[0]
        async with work.session() as db:
            old = [name for name in await queries.partitions(db, table) if name < gone]
        for name in old:
            async with work.session() as db:
                await db.execute(text(f"DROP TABLE IF EXISTS {name}"))


async def _roll_up(
    work: Work,
    *,
    source: Partitioned,
    target: Partitioned,
    width: timedelta,
    until: datetime,
    again: timedelta,
) -> None:
    """What of ``source`` is not in ``target`` yet, and the last of it ``again``."""
    async with work.session() as db:
        done, first = await queries.newest_at(db, target), await queries.oldest_at(db, source)
    if first is None:
        return
    begin = _begin_of(first, width)
    if done is not None:
        begin = max(begin, done + width - again)
    while begin < until:
        end = min(begin + AT_ONCE[source], until)
        async with work.session() as db:
            await db.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_S}s'"))
            for day in sorted({begin.date(), end.date()}):
                await samples.make_partition(db, target, day)
            await queries.roll_up(db, source=source, target=target, width=width, begin=begin, end=end)
        begin = end


def _begin_of(at: datetime, width: timedelta) -> datetime:
    """Of the minute or hour, in UTC."""
    minute = at.astimezone(UTC).replace(second=0, microsecond=0)
    return minute if width == _MINUTE else minute.replace(minute=0)


LOOP = Loop(name="metrics", every_s=60.0, run=keep)
