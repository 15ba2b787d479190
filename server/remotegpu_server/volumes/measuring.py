"""Which homes are measured now, and by whom. One host for each home, few at a time for each host.

A home is measured when it is new, after something that ran on it ended, at a pace while something runs on it,
and once a day otherwise. A shared home is measured by one of the hosts that reach it; when that one is lost,
by another.
"""

from __future__ import annotations

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound
from remotegpu.types.agent import HomeVolume, VolumeSize
from remotegpu_server import holds
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.volumes import queries

MOST_AT_ONCE = 16
"""Asked of one host; it measures them one after the other."""
LEAST_S = 300
"""Between two measurements of one home, whatever ended meanwhile."""
AT_REST_S = 86400
"""Nothing runs on it; something else may still write there."""
GIVEN_UP_S = 6 * 3600
"""A host that has said nothing about a shared home for so long does not measure it."""

# Sub-selects with a LIMIT instead of EXISTS: the planner may turn the latter into a read of all placements.
_DUE = text("""
    WITH able AS (
        SELECT id, shared_home FROM hosts WHERE connection = 'online' AND operational <> 'retired'
    ), due AS (
        SELECT v.id, v.measure_asked_at, coalesce(v.host_id, (
            SELECT able.id FROM able WHERE able.shared_home = v.shared_home
            ORDER BY (SELECT p.id FROM placements p WHERE p.volume_id = v.id AND p.host_id = able.id
                AND p.released_at IS NULL LIMIT 1) IS NULL, able.id LIMIT 1)) AS host_id
        FROM volumes v
        WHERE v.removal_requested_at IS NULL
          AND (v.measuring_host_id IS NULL OR v.shared_home IS NOT NULL AND (
                v.measure_asked_at < now() - make_interval(secs => :given_up_s)
                OR NOT EXISTS (SELECT FROM able
                    WHERE able.id = v.measuring_host_id AND able.shared_home = v.shared_home)))
          AND (v.measure_asked_at IS NULL
            OR v.measure_asked_at < now() - make_interval(secs => :at_rest_s)
            OR v.measure_asked_at < now() - make_interval(secs => :every_s) AND (v.measured_at IS NULL
                OR (SELECT p.id FROM placements p
                    WHERE p.volume_id = v.id AND p.released_at IS NULL LIMIT 1) IS NOT NULL)
            OR v.measure_asked_at < now() - make_interval(secs => :least_s)
                AND (SELECT max(p.released_at) FROM placements p
                    WHERE p.volume_id = v.id) > v.measure_asked_at)
    ), open AS (
        SELECT measuring_host_id AS host_id, count(*) AS asked FROM volumes
        WHERE measuring_host_id IS NOT NULL GROUP BY 1
    ), ranked AS (
        SELECT due.id, due.host_id, coalesce(open.asked, 0) + row_number()
            OVER (PARTITION BY due.host_id ORDER BY due.measure_asked_at NULLS FIRST, due.id) AS place
        FROM due JOIN able ON able.id = due.host_id LEFT JOIN open ON open.host_id = due.host_id
    )
    SELECT host_id, array_agg(id ORDER BY id) FROM ranked WHERE place <= :most GROUP BY 1 ORDER BY 1
""")


async def due(db: AsyncSession, *, every_s: float) -> dict[str, list[str]]:
    """Ids of homes to be measured, by the host that shall do it."""
    limits = {"every_s": every_s, "least_s": LEAST_S, "at_rest_s": AT_REST_S, "given_up_s": GIVEN_UP_S}
    rows = await db.execute(_DUE, limits | {"most": MOST_AT_ONCE})
    return {host_id: list(ids) for host_id, ids in rows}


async def ask(db: AsyncSession, *, host_id: str, volume_ids: list[str]) -> None:
    """Show them to the host's agent until it has answered. Lock order: host, volumes."""
    await holds.lock_host(db, host_id=host_id)
    row = tables.Volume
    await db.execute(
        update(row)
        .where(row.id.in_(volume_ids), row.removal_requested_at.is_(None))
        .values(measuring_host_id=host_id, measure_asked_at=func.now())
        .execution_options(synchronize_session=False)
    )
    await holds.bump_revision(db, host_id=host_id)


async def open_measurements(db: AsyncSession, *, host_id: str) -> list[HomeVolume]:
    """Homes that a host's agent has to measure."""
    row = tables.Volume
    rows = await db.execute(
        select(row.id, row.shared_home.is_not(None))
        .where(row.measuring_host_id == host_id)
        .order_by(row.measure_asked_at, row.id)
    )
    return [HomeVolume(volume_id=volume_id, shared=shared) for volume_id, shared in rows]


async def answer(db: AsyncSession, *, host: tables.Host, volume_id: str, body: VolumeSize) -> None:
    """What the agent found; the caller has fenced its session and locked its host."""
    volume = await queries.lock(db, volume_id=volume_id)
    if volume is None or volume.measuring_host_id != host.id:
        raise NotFound("Nobody asked for this size, or another host was asked instead.")
    row = tables.Volume
    measured = {} if body.size_bytes is None else {"size_bytes": body.size_bytes, "measured_at": func.now()}
    await db.execute(
        update(row)
        .where(row.id == volume_id)
        .values(measuring_host_id=None, **measured)
        .execution_options(synchronize_session=False)
    )
    if body.size_bytes is not None and body.size_bytes < (volume.size_bytes or 0):
        notify(db, "queue")  # who waited for its storage may start now
