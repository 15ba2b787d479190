"""SQL of usage statistics: spans of allocations, cut to the time asked for and split by day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.usage import UsageGroup

COLUMNS: dict[UsageGroup, tuple[str, ...]] = {
    UsageGroup.DAY: ("day",),
    UsageGroup.CUSTOMER: ("customer_id", "customer"),
    UsageGroup.WORKSPACE: ("workspace_id", "workspace"),
    UsageGroup.USER: ("user_id", "user"),
    UsageGroup.GPU_MODEL: ("gpu_model",),
}
"""The fields of a record that a group fills; the names of what the statement groups by."""

_SPANS = """
    WITH spans AS (
        SELECT a.id, a.placement_id, a.gpu_fraction, a.allocated_at, a.customer_id, a.workspace_id, a.user_id,
               g.model AS gpu_model, g.simulated,
               greatest(a.allocated_at, :begin) AS began,
               least(coalesce(a.released_at, now()), :end, now()) AS ended,
               extract(epoch FROM p.placed_at - p.queued_at) AS wait_s
        FROM all_allocations a
        JOIN gpus g ON g.id = a.gpu_id
        LEFT JOIN (SELECT id, placed_at, queued_at FROM placements
                   UNION ALL SELECT id, placed_at, queued_at FROM placements_history) p
               ON p.id = a.placement_id
        WHERE a.allocated_at < :end AND coalesce(a.released_at, now()) > :begin
          AND (CAST(:customer_id AS text) IS NULL OR a.customer_id = :customer_id)
          AND (CAST(:user_id AS text) IS NULL OR a.user_id = :user_id)
    ), days AS (
        SELECT s.*, CAST(d AS date) AS day,
               extract(epoch FROM least(s.ended, d + interval '1 day') - greatest(s.began, d))
                   * s.gpu_fraction / 3600 AS hours,
               s.allocated_at >= greatest(s.began, d) AND s.allocated_at < d + interval '1 day' AS begins
        FROM spans s CROSS JOIN LATERAL generate_series(
            date_trunc('day', s.began, 'UTC'), s.ended, interval '1 day') AS d
    )
"""


@dataclass(frozen=True, slots=True)
class Filter:
    """What is counted: a time, and whose."""

    begin: datetime
    end: datetime
    customer_id: str | None
    user_id: str | None


async def records(
    db: AsyncSession, *, which: Filter, group_by: Sequence[UsageGroup], limit: int
) -> list[dict[str, Any]]:
    """One row for each group, ordered by the groups; simulated GPUs apart."""
    sources = {
        "customer": "c.name AS customer",
        "workspace": "w.name AS workspace",
        "user": 'u.username AS "user"',
    }
    names = [name for group in group_by for name in COLUMNS[group]]
    shown = ", ".join(sources.get(name, f"d.{name}") for name in [*names, "simulated"])
    order = ", ".join(str(place) for place in range(1, len(names) + 2))
    statement = f"""{_SPANS}
        SELECT {shown}, sum(d.hours) AS gpu_hours,
               count(*) FILTER (WHERE d.begins) AS allocations,
               count(DISTINCT d.placement_id) FILTER (WHERE d.begins) AS starts,
               avg(d.wait_s) FILTER (WHERE d.begins) AS wait_mean_s,
               max(d.wait_s) FILTER (WHERE d.begins) AS wait_max_s
        FROM days d JOIN customers c ON c.id = d.customer_id JOIN workspaces w ON w.id = d.workspace_id
        JOIN users u ON u.id = d.user_id
        GROUP BY {order} ORDER BY {order} LIMIT :limit
    """  # noqa: S608  names of this file
    given = {
        "begin": which.begin,
        "end": which.end,
        "customer_id": which.customer_id,
        "user_id": which.user_id,
        "limit": limit,
    }
    return [dict(row) for row in (await db.execute(text(statement), given)).mappings()]
