"""What heartbeats measured: the newest of each host in memory, and the history, written in batches.

A heartbeat only puts its sample here. Once a second all that came in is one INSERT, so a fleet of a thousand
hosts is one statement a second. The session of every request and loop carries the samples of its process.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast

import structlog
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.exc import DataError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

WRITE_EVERY_S = 1.0
KEPT = 5000
"""Samples that wait for a database which takes none; the oldest go first."""
BATCH = 500
SHOWN_S = 300.0
"""The newest sample of a host counts for so long."""
LOST = Counter("remotegpu_samples_lost_total", "Samples of heartbeats that could not be written.")
_INFO = "remotegpu_samples"
_log = structlog.get_logger(__name__)

Document = dict[str, Any]
"""Last values by name; ``mean`` and ``highest`` hold those that differ. An absent value has no key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one heartbeat of a host measured."""

    host_id: str
    at: datetime
    """Of receipt, by the database's clock."""
    host: Document
    gpus: dict[str, Document]
    """By GPU UUID."""
    workloads: dict[str, Document]
    """By id of an environment or an attempt."""


_INSERT = text("""
    INSERT INTO host_samples (host_id, at, n, host, gpus, workloads)
    SELECT row.host_id, row.at, 1, CAST(row.host AS jsonb), CAST(row.gpus AS jsonb),
           CAST(row.workloads AS jsonb)
    FROM unnest(CAST(:host_ids AS text[]), CAST(:ats AS timestamptz[]), CAST(:hosts AS text[]),
                CAST(:gpus AS text[]), CAST(:workloads AS text[])) AS row (host_id, at, host, gpus, workloads)
    ON CONFLICT DO NOTHING
""")


class Samples:
    """The samples of one process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._newest: dict[str, tuple[float, Sample]] = {}
        self._waiting: deque[Sample] = deque()
        self._days: set[date] = set()
        """Days that are known to have their partition."""
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def put(self, sample: Sample) -> None:
        """Take the sample of a heartbeat."""
        self._newest[sample.host_id] = (time.monotonic(), sample)
        self._waiting.append(sample)
        if len(self._waiting) > KEPT:
            self._waiting.popleft()
            LOST.inc()

    def latest(self, host_id: str) -> Sample | None:
        """The newest that this process received, if it is not too old; another process may know a newer one
        (:func:`newest`)."""
        received_at, sample = self._newest.get(host_id, (0.0, None))
        if sample is not None and time.monotonic() - received_at > SHOWN_S:
            del self._newest[host_id]
            return None
        return sample

    def start(self) -> None:
        """Write from now on."""
        self._task = asyncio.create_task(self._write_for_ever(), name="samples-write")

    async def stop(self) -> None:
        """Write what is left."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.write()

    async def write(self) -> None:
        """All that waits. What a silent database does not take goes on waiting."""
        try:
            async with self._writing:
                while self._waiting:
                    await self._write_batch()
        except (SQLAlchemyError, OSError) as error:
            _log.warning("samples_not_written", error=type(error).__name__, waiting=len(self._waiting))

    async def _write_batch(self, most: int = BATCH) -> None:
        batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        try:
            await self._insert(batch)
        except DataError:
            if len(batch) == 1:  # one that no database takes must not hold up the others
                LOST.inc()
                _log.warning("sample_refused", host_id=batch[0].host_id)
                return
            self._waiting.extendleft(reversed(batch))
            for _ in batch:
                await self._write_batch(1)
        except BaseException:
            self._days.clear()
            self._waiting.extendleft(reversed(batch))
            raise

    async def _insert(self, batch: list[Sample]) -> None:
        days = {sample.at.astimezone(UTC).date() for sample in batch}
        async with self._engine.begin() as db:
            for day in sorted(days - self._days):
                await make_partition(db, HOST_SAMPLES, day)
            await db.execute(
                _INSERT,
                {
                    "host_ids": [sample.host_id for sample in batch],
                    "ats": [sample.at for sample in batch],
                    "hosts": [json.dumps(sample.host) for sample in batch],
                    "gpus": [json.dumps(sample.gpus) for sample in batch],
                    "workloads": [json.dumps(sample.workloads) for sample in batch],
                },
            )
        self._days = days  # of earlier days nothing comes any more, and their partitions go one day

    async def _write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            try:
                await self.write()
            except Exception:  # noqa: BLE001  ended here in silence, it would lose the history of the fleet
                _log.exception("samples_not_written", waiting=len(self._waiting))


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table of samples: which span one partition holds, and how long its rows are kept."""

    table: str
    by_month: bool
    kept: timedelta

    def partition(self, day: date) -> tuple[str, date, date]:
        """Name, first day and the day after the last one of the partition that holds ``day``."""
        if not self.by_month:
            return f"{self.table}_{day:%Y%m%d}", day, day + timedelta(days=1)
        first = day.replace(day=1)
        return f"{self.table}_{day:%Y%m}", first, (first + timedelta(days=32)).replace(day=1)


HOST_SAMPLES = Partitioned("host_samples", by_month=False, kept=timedelta(hours=24))
MINUTES = Partitioned("host_sample_minutes", by_month=False, kept=timedelta(days=14))
HOURS = Partitioned("host_sample_hours", by_month=True, kept=timedelta(days=366))

_PARTITION_LOCK = 7_310_446_034


async def make_partition(db: AsyncConnection | AsyncSession, table: Partitioned, day: date) -> None:
    """Make the partition that holds this day, unless it is there. Processes may race."""
    name, first, after = table.partition(day)
    if await db.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is not None:
        return
    await db.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PARTITION_LOCK})
    if await db.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is not None:
        return  # another process was first
    # Attached, not made as a partition: that would wait for everybody who reads the table, and a request that
    # has read it may be waiting for this.
    await db.execute(text(f"CREATE TABLE {name} (LIKE {table.table} INCLUDING DEFAULTS INCLUDING INDEXES)"))
    await db.execute(
        text(
            f"ALTER TABLE {table.table} ATTACH PARTITION {name}"
            f" FOR VALUES FROM ('{first} 00:00+00') TO ('{after} 00:00+00')"
        )
    )


def shown(document: Document) -> Document:
    """The last values alone, as the wire types have them."""
    return {name: value for name, value in document.items() if name not in ("mean", "highest")}


def info(samples: Samples) -> dict[str, object]:
    """What sessions carry so that :func:`of` finds the samples."""
    return {_INFO: samples}


def of(db: AsyncSession) -> Samples:
    """The samples of the process that this session belongs to."""
    return cast("Samples", db.sync_session.info[_INFO])


async def newest(db: AsyncSession, *, host_ids: Iterable[str]) -> dict[str, Sample]:
    """The last measurement of each host, by host id, whichever server received it; none of a silent host."""
    here, found = of(db), {}
    rows = await db.execute(_NEWEST, {"host_ids": list(host_ids), "shown_s": SHOWN_S})
    for host_id, at, host, gpus, workloads in rows:
        mine = here.latest(host_id)
        if mine is not None and (at is None or mine.at >= at):
            found[host_id] = mine
        elif at is not None:
            found[host_id] = Sample(host_id=host_id, at=at, host=host, gpus=gpus, workloads=workloads)
    return found


async def last_measured(db: AsyncSession, *, host_ids: Iterable[str]) -> dict[str, datetime]:
    """When each of these hosts was measured last, as far as that is kept; to the minute where it is old."""
    rows = await db.execute(_LAST_MEASURED, {"host_ids": list(host_ids)})
    return {host_id: at for host_id, at in rows if at is not None}


_LAST_MEASURED = text("""
    SELECT id, greatest(
        (SELECT max(at) FROM host_samples WHERE host_id = id),
        (SELECT max(at) FROM host_sample_minutes WHERE host_id = id)
    )
    FROM unnest(CAST(:host_ids AS text[])) AS id
""")
_NEWEST = text("""
    SELECT h.id, s.at, s.host, s.gpus, s.workloads
    FROM hosts h
    LEFT JOIN LATERAL (
        SELECT * FROM host_samples
        WHERE host_id = h.id AND at > now() - make_interval(secs => :shown_s)
        ORDER BY at DESC LIMIT 1
    ) s ON true
    WHERE h.id = ANY(CAST(:host_ids AS text[])) AND h.connection IN ('online', 'suspect')
""")
