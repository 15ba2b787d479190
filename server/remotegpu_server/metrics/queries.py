"""SQL of the history of measurements: roll-ups, and series out of documents.

All three tables hold the same documents: last values by name, under ``mean`` and ``highest`` those that
differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.metrics import Resolution
from remotegpu_server.db.samples import HOST_SAMPLES, HOURS, MINUTES, Partitioned

_VALUES = """
    CROSS JOIN LATERAL jsonb_each(d.doc) AS e (key, value)
    WHERE jsonb_typeof(e.value) = 'number'
"""
_MEAN = "coalesce((d.doc -> 'mean' ->> e.key)::float8, e.value::float8)"
_HIGHEST = "coalesce((d.doc -> 'highest' ->> e.key)::float8, e.value::float8)"

_ROLL_UP = """
    WITH docs AS (
        SELECT s.host_id, date_bin(:width, s.at, TIMESTAMPTZ '2000-01-01 00:00+00') AS bucket, s.at, s.n,
               part.of, part.id, part.doc
        FROM {source} s CROSS JOIN LATERAL (
            SELECT 'host' AS of, '' AS id, s.host AS doc
            UNION ALL SELECT 'gpu', g.key, g.value FROM jsonb_each(s.gpus) g
            UNION ALL SELECT 'workload', w.key, w.value FROM jsonb_each(s.workloads) w
        ) part
        WHERE s.at >= :begin AND s.at < :end
    ), measured AS (
        SELECT d.host_id, d.bucket, d.of, d.id, e.key,
               (array_agg(e.value ORDER BY d.at DESC))[1] AS last,
               round((sum({mean} * d.n) / sum(d.n))::numeric, 3) AS mean,
               max({highest}) AS highest
        FROM docs d {values}
        GROUP BY 1, 2, 3, 4, 5
    ), rolled AS (
        SELECT host_id, bucket, of, id,
               jsonb_object_agg(key, last)
               || jsonb_build_object(
                   'mean', coalesce(jsonb_object_agg(key, mean) FILTER (WHERE mean <> last::numeric), '{{}}'),
                   'highest',
                   coalesce(jsonb_object_agg(key, highest) FILTER (WHERE highest <> last::float8), '{{}}')
               ) AS doc
        FROM measured GROUP BY 1, 2, 3, 4
    ), counted AS (
        SELECT host_id, bucket, sum(n)::int AS n FROM docs WHERE of = 'host' GROUP BY 1, 2
    )
    INSERT INTO {target} (host_id, at, n, host, gpus, workloads)
    SELECT c.host_id, c.bucket, c.n,
           coalesce((jsonb_agg(r.doc) FILTER (WHERE r.of = 'host')) -> 0, '{{}}'),
           coalesce(jsonb_object_agg(r.id, r.doc) FILTER (WHERE r.of = 'gpu'), '{{}}'),
           coalesce(jsonb_object_agg(r.id, r.doc) FILTER (WHERE r.of = 'workload'), '{{}}')
    FROM counted c LEFT JOIN rolled r ON r.host_id = c.host_id AND r.bucket = c.bucket
    GROUP BY c.host_id, c.bucket, c.n
    ON CONFLICT (host_id, at) DO UPDATE
    SET n = excluded.n, host = excluded.host, gpus = excluded.gpus, workloads = excluded.workloads
"""


async def roll_up(
    db: AsyncSession,
    *,
    source: Partitioned,
    target: Partitioned,
    width: timedelta,
    begin: datetime,
    end: datetime,
) -> None:
    """Make the rows of ``target`` anew whose buckets begin from ``begin`` on, and before ``end``."""
    statement = _ROLL_UP.format(
        source=source.table, target=target.table, mean=_MEAN, highest=_HIGHEST, values=_VALUES
    )
    await db.execute(text(statement), {"width": width, "begin": begin, "end": end})


async def newest_at(db: AsyncSession, table: Partitioned) -> datetime | None:
    """Of the last row; by the index of each partition."""
    found: datetime | None = await db.scalar(text(f"SELECT max(at) FROM {table.table}"))  # noqa: S608
    return found


async def oldest_at(db: AsyncSession, table: Partitioned) -> datetime | None:
    found: datetime | None = await db.scalar(text(f"SELECT min(at) FROM {table.table}"))  # noqa: S608
    return found


async def partitions(db: AsyncSession, table: Partitioned) -> list[str]:
    """Names of those that are there."""
    found = await db.scalars(
        text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:name AS regclass)"),
        {"name": table.table},
    )
    return sorted(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """From when to when, in which steps, out of which table."""

    begin: datetime
    end: datetime
    step: timedelta
    resolution: Resolution


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A time in which something of a host was somebody's: a workload, or a GPU."""

    host_id: str
    of: str
    """``host``, ``gpu`` or ``workload``."""
    key: str
    """UUID or workload id; empty for the host itself."""
    simulated: bool
    begin: datetime | None
    end: datetime | None


ADDITIVE = frozenset(
    {
        "cpu_percent",
        "memory_used_bytes",
        "memory_total_bytes",
        "gpu_memory_used_bytes",
        "connections",
        "power_w",
        "energy_j",
        "pcie_rx_bytes_per_s",
        "pcie_tx_bytes_per_s",
        "nvlink_rx_bytes_per_s",
        "nvlink_tx_bytes_per_s",
        "ecc_corrected",
        "ecc_uncorrected",
    }
)
"""What several have together is the sum; of everything else it is the mean."""

_SEEN = {
    Resolution.SAMPLES: "SELECT *, INTERVAL '0' AS width FROM host_samples",
    Resolution.MINUTES: """
        SELECT *, INTERVAL '1 minute' AS width FROM host_sample_minutes WHERE at < :minutes_until
        UNION ALL SELECT *, INTERVAL '0' FROM host_samples WHERE at >= :minutes_until
    """,
    Resolution.HOURS: """
        SELECT *, INTERVAL '1 hour' AS width FROM host_sample_hours WHERE at < :hours_until
        UNION ALL SELECT *, INTERVAL '1 minute' FROM host_sample_minutes
        WHERE at >= :hours_until AND at < :minutes_until
        UNION ALL SELECT *, INTERVAL '0' FROM host_samples WHERE at >= :minutes_until
    """,
}
"""The newest part is not rolled up yet, and is read from the finer table. ``width``: the time in a row."""

# A row of a GPU in which it changed hands counts for neither holder: it tells how busy the other one was.
_SERIES = """
    WITH spans AS (
        SELECT * FROM unnest(
            CAST(:host_ids AS text[]), CAST(:ofs AS text[]), CAST(:keys AS text[]),
            CAST(:simulated AS bool[]), CAST(:begins AS timestamptz[]), CAST(:ends AS timestamptz[])
        ) AS span (host_id, of, key, simulated, begin_at, end_at)
    ), d AS (
        SELECT date_bin(:step, s.at, :begin) AS bucket, s.at, s.n, span.of, span.key AS id, span.simulated,
               CASE span.of WHEN 'host' THEN s.host WHEN 'gpu' THEN s.gpus -> span.key
                   ELSE s.workloads -> span.key END AS doc
        FROM spans span JOIN ({seen}) s ON s.host_id = span.host_id
        WHERE s.at >= greatest(:begin, span.begin_at) AND s.at < least(:end, span.end_at)
          AND (span.of <> 'gpu' OR span.end_at IS NULL OR s.at + s.width <= span.end_at)
    ), one AS (
        SELECT d.bucket, d.of, d.id, d.simulated, e.key AS metric,
               sum({mean} * d.n) / sum(d.n) AS mean, max({highest}) AS highest,
               (array_agg(e.value::float8 ORDER BY d.at DESC))[1] AS last
        FROM d {values} AND (CAST(:metrics AS text[]) IS NULL OR e.key = ANY(CAST(:metrics AS text[])))
        GROUP BY 1, 2, 3, 4, 5
    )
"""
_EACH = """
    SELECT bucket AS at, of, metric, CASE WHEN of = 'gpu' THEN id END AS gpu_uuid, simulated,
           round(mean::numeric, 3)::float8 AS mean, highest, last
    FROM one ORDER BY bucket, of, metric, gpu_uuid LIMIT :most
"""
_TOGETHER = """
    , kinds AS (SELECT *, metric = ANY(CAST(:additive AS text[])) AS additive FROM one)
    SELECT bucket AS at, of, metric, NULL AS gpu_uuid, simulated,
           round((CASE WHEN additive THEN sum(mean) ELSE avg(mean) END)::numeric, 3)::float8 AS mean,
           CASE WHEN NOT additive OR count(*) = 1 THEN max(highest) END AS highest,
           CASE WHEN additive THEN sum(last) ELSE avg(last) END AS last
    FROM kinds GROUP BY 1, 2, 3, 5, additive
    UNION ALL
    SELECT bucket, of, 'gpus', NULL, simulated, count(DISTINCT id), NULL, count(DISTINCT id)
    FROM one WHERE of = 'gpu' GROUP BY 1, 2, 5
    ORDER BY at, of, metric LIMIT :most
"""


async def series(
    db: AsyncSession,
    *,
    spans: Sequence[Span],
    window: Window,
    metrics: Sequence[str],
    together: bool,
    minutes_until: datetime,
    hours_until: datetime,
    most: int,
) -> list[dict[str, Any]]:
    """Points of what the spans name; ``together``: one series for all of a kind, simulated ones apart."""
    statement = _SERIES.format(seen=_SEEN[window.resolution], mean=_MEAN, highest=_HIGHEST, values=_VALUES)
    given = {
        "host_ids": [span.host_id for span in spans],
        "ofs": [span.of for span in spans],
        "keys": [span.key for span in spans],
        "simulated": [span.simulated for span in spans],
        "begins": [span.begin for span in spans],
        "ends": [span.end for span in spans],
        "begin": window.begin,
        "end": window.end,
        "step": window.step,
        "metrics": list(metrics) or None,
        "most": most,
    }
    if together:
        given["additive"] = sorted(ADDITIVE)
    if window.resolution is not Resolution.SAMPLES:
        given["minutes_until"] = minutes_until
    if window.resolution is Resolution.HOURS:
        given["hours_until"] = hours_until
    found = await db.execute(text(statement + (_TOGETHER if together else _EACH)), given)
    return [dict(row) for row in found.mappings()]


TABLES: dict[Resolution, Partitioned] = {
    Resolution.SAMPLES: HOST_SAMPLES,
    Resolution.MINUTES: MINUTES,
    Resolution.HOURS: HOURS,
}

_SPANS = """
    SELECT p.host_id, 'workload' AS of, coalesce(p.environment_id, p.attempt_id) AS key,
           coalesce(bool_and(g.simulated), false) AS simulated, p.placed_at AS begin_at,
           p.released_at AS end_at
    FROM (SELECT id, host_id, environment_id, attempt_id, workspace_id, customer_id, placed_at, released_at
          FROM placements
          UNION ALL
          SELECT id, host_id, environment_id, attempt_id, workspace_id, customer_id, placed_at, released_at
          FROM placements_history) p
    LEFT JOIN all_allocations a ON a.placement_id = p.id LEFT JOIN gpus g ON g.id = a.gpu_id
    WHERE {whose} AND p.placed_at < :end AND (p.released_at IS NULL OR p.released_at > :begin)
    GROUP BY 1, 2, 3, 5, 6
    UNION ALL
    SELECT p.host_id, 'gpu', g.uuid, g.simulated, p.allocated_at, p.released_at
    FROM all_allocations p JOIN gpus g ON g.id = p.gpu_id
    WHERE {whose} AND p.allocated_at < :end AND (p.released_at IS NULL OR p.released_at > :begin)
    LIMIT :most
"""
WHOSE = {
    "environment": "p.environment_id = :subject_id",
    "task": "p.attempt_id IN (SELECT id FROM attempts WHERE task_id = :subject_id)",
    "workspace": "p.workspace_id = :subject_id",
    "customer": "p.customer_id = :subject_id",
}


async def spans_of(
    db: AsyncSession, *, subject: str, subject_id: str, begin: datetime, end: datetime, most: int
) -> list[Span]:
    """What an environment, task, workspace or customer held, and when."""
    statement = _SPANS.format(whose=WHOSE[subject])
    given = {"subject_id": subject_id, "begin": begin, "end": end, "most": most}
    return [
        Span(host_id=host_id, of=of, key=key, simulated=simulated, begin=began, end=ended)
        for host_id, of, key, simulated, began, ended in await db.execute(text(statement), given)
    ]


async def spans_of_host(db: AsyncSession, *, host_id: str, uuid: str | None) -> list[Span]:
    """The host with all its GPUs, or one of them."""
    found = await db.execute(
        text(
            "SELECT uuid, simulated FROM gpus WHERE host_id = :host_id"
            " AND (CAST(:uuid AS text) IS NULL OR uuid = :uuid)"
        ),
        {"host_id": host_id, "uuid": uuid},
    )

    def span(of: str, key: str, simulated: bool) -> Span:
        return Span(host_id=host_id, of=of, key=key, simulated=simulated, begin=None, end=None)

    gpus = [span("gpu", name, simulated) for name, simulated in found]
    return gpus if uuid is not None else [span("host", "", False), *gpus]
