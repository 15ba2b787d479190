"""One fleet per process and database, kept fresh by what changed since it was last looked at.

Triggers write down each host on which something changed what is free. The rows of transactions that the last
snapshot did not see are the hosts to load again: nothing is missed, and nothing else is read. A fleet may be
a moment old all the same; whoever takes something locks the host and looks again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Select, func, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.placement import Fleet, HostInventory, Kind, Mix

RELOAD_S = 300.0
"""Load everything anew, typical requests included."""
LEARN_DAYS = 30
WHOLE = 1000
Loader = Callable[[AsyncSession, Sequence[str] | None], Awaitable[list[HostInventory]]]

_CHANGED = text("""
    SELECT CAST(pg_current_snapshot() AS text) AS snapshot,
        array_agg(DISTINCT host_id) AS hosts,
        array_agg(DISTINCT host_id) FILTER (WHERE xid = pg_current_xact_id_if_assigned()) AS own,
        CAST(pg_current_xact_id_if_assigned() AS text) AS reader
    FROM capacity_changes
    WHERE xid >= pg_snapshot_xmin(CAST(:seen AS pg_snapshot))
      AND (NOT pg_visible_in_snapshot(xid, CAST(:seen AS pg_snapshot)) OR xid = CAST(:reader AS xid8))
""")
_SEEN = text(
    "SELECT CAST(pg_current_snapshot() AS text), CAST(pg_current_xact_id_if_assigned() AS text) AS reader"
)


class _Fleets:
    """The fleet of one database, as this process knows it."""

    def __init__(self) -> None:
        self._fleet: Fleet | None = None
        self._lock = asyncio.Lock()
        self._seen = ""
        self._reader: str | None = None
        """The transaction that looked last, if it had an id: a snapshot does not list its own transaction, so
        what that one changes afterwards would be taken for seen."""
        self._unsettled: set[str] = set()
        """Hosts that were read with changes of a transaction that may still be rolled back."""
        self._loaded_at = 0.0

    async def current(self, db: AsyncSession, load: Loader) -> Fleet:
        async with self._lock:
            if self._fleet is None or time.monotonic() - self._loaded_at > RELOAD_S:
                self._fleet = await self._load(db, load)
            else:
                await self._refresh(db, load, self._fleet)
            return self._fleet

    async def _load(self, db: AsyncSession, load: Loader) -> Fleet:
        self._seen, self._reader = (await db.execute(_SEEN)).one()
        own = text("SELECT host_id FROM capacity_changes WHERE xid = pg_current_xact_id_if_assigned()")
        self._unsettled = set((await db.scalars(own)).all())
        fleet = Fleet(await load(db, None))
        fleet.mix = Mix(await _typical(db, gpu_memory_bytes=fleet.usual_gpu_bytes))
        self._loaded_at = time.monotonic()
        return fleet

    async def _refresh(self, db: AsyncSession, load: Loader, fleet: Fleet) -> None:
        looked_from = {"seen": self._seen, "reader": self._reader}
        snapshot, hosts, own, reader = (await db.execute(_CHANGED, looked_from)).one()
        changed = {*(hosts or ()), *self._unsettled}
        if changed:
            present = {host.id: host for host in await load(db, sorted(changed))}
            for host_id in changed:
                if host_id in present:
                    fleet.update(present[host_id])
                elif fleet.host(host_id) is not None:
                    fleet.remove(host_id)
        self._seen, self._reader, self._unsettled = snapshot, reader, set(own or ())


_known: WeakKeyDictionary[object, _Fleets] = WeakKeyDictionary()


async def current(db: AsyncSession, load: Loader) -> Fleet:
    """The fleet as ``db`` sees it now. Shared: read it, and :meth:`Fleet.copy` it to try things."""
    return await _known.setdefault(db.get_bind(), _Fleets()).current(db, load)


def _asked(row: type[tables.Environment | tables.Task]) -> Select[*tuple[Any, ...]]:
    return select(
        row.gpus,
        row.gpu_memory_bytes,
        row.cpus,
        row.memory_bytes,
        row.gpu_models,
        row.min_gpu_memory_bytes,
        row.max_gpu_memory_bytes,
    ).where(
        row.gpus > 0,
        row.mig_profile.is_(None),
        row.created_at > func.now() - func.make_interval(0, 0, 0, LEARN_DAYS),
    )


async def _typical(db: AsyncSession, *, gpu_memory_bytes: int) -> list[tuple[Kind, int]]:
    """What was asked for lately, by environments and tasks, counted."""
    asked = union_all(_asked(tables.Environment), _asked(tables.Task)).subquery()
    columns = tuple(asked.c)
    rows = await db.execute(
        select(*columns)
        .add_columns(func.count())
        .group_by(*columns)
        .order_by(func.count().desc())
        .limit(1000)
    )
    return [
        (
            Kind(
                gpus=gpus,
                milli=WHOLE if share is None else min(WHOLE, -(-share * WHOLE // gpu_memory_bytes)),
                cpus=cpus,
                memory_bytes=memory_bytes,
                gpu_models=tuple(models),
                min_gpu_memory_bytes=least,
                max_gpu_memory_bytes=most,
            ),
            count,
        )
        for gpus, share, cpus, memory_bytes, models, least, most, count in rows
    ]
