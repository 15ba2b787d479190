"""The order of the queue: priority, then decayed fair share over customers and inside over users, then age.

A share is GPU-hours held, halved with every half-life that they lie back, plus an hour for each GPU that is
held now or asked for by an earlier request of the same customer or user: so equal customers take turns.
Whole GPU-hours count: less than one apart is equal, and the older request goes first. All of it is read from
the allocations at the moment of asking; nothing is counted anywhere.
"""

from __future__ import annotations

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import QUEUE_HALF_LIFE_S

REMEMBERED_HALF_LIVES = 8
"""What lies further back weighs below half a percent and is not read."""

_ORDER: TextClause = text(
    """
    WITH going AS (
        SELECT array_id, count(*) AS tasks FROM tasks
        WHERE status IN ('assigned', 'running') AND array_id IS NOT NULL GROUP BY array_id
    ), waiting AS (
        SELECT id, owner_id, customer_id, priority, queued_at, gpus FROM environments
        WHERE status = 'pending' AND (start_at IS NULL OR start_at <= now())
        UNION ALL
        SELECT id, owner_id, customer_id, priority, queued_at, gpus * nodes FROM (
            SELECT t.id, t.owner_id, t.customer_id, t.priority, t.queued_at, t.gpus, t.nodes, a.max_parallel,
                row_number() OVER (PARTITION BY t.array_id ORDER BY t.array_index)
                    + coalesce(g.tasks, 0) AS nth
            FROM tasks t LEFT JOIN task_arrays a ON a.id = t.array_id LEFT JOIN going g ON g.array_id = a.id
            WHERE t.status = 'pending' AND (t.start_at IS NULL OR t.start_at <= now())
              AND NOT EXISTS (
                SELECT FROM task_dependencies d JOIN tasks b ON b.id = d.after_id
                WHERE d.task_id = t.id
                  AND (b.finished_at IS NULL OR d.condition = 'after_ok' AND b.status <> 'succeeded'))
        ) numbered WHERE max_parallel IS NULL OR nth <= max_parallel
    ), held AS (
        SELECT customer_id, user_id, coalesce(sum(gpu_fraction) FILTER (WHERE released_at IS NULL), 0) + sum(
            gpu_fraction * CAST(:half_life_s AS float8) / ln(2) / 3600 * (
                power(0.5, extract(epoch FROM now() - coalesce(released_at, now())) / :half_life_s)
                - power(0.5, least(extract(epoch FROM now() - allocated_at) / :half_life_s, 1000)))
        ) AS gpu_hours
        FROM allocations
        WHERE customer_id IN (SELECT customer_id FROM waiting)
          AND (released_at IS NULL OR released_at > now() - make_interval(secs => :remembered_s))
        GROUP BY customer_id, user_id
    ), by_user AS (
        SELECT w.*, floor(coalesce(h.gpu_hours, 0) + coalesce(sum(w.gpus) OVER (
            PARTITION BY w.customer_id, w.owner_id ORDER BY w.priority, w.queued_at, w.id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)) AS user_share
        FROM waiting w LEFT JOIN held h ON h.customer_id = w.customer_id AND h.user_id = w.owner_id
    ), by_customer AS (
        SELECT u.*, floor(coalesce(c.gpu_hours, 0) + coalesce(sum(u.gpus) OVER (
            PARTITION BY u.customer_id ORDER BY u.priority, u.user_share, u.queued_at, u.id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)) AS customer_share
        FROM by_user u LEFT JOIN (
            SELECT customer_id, sum(gpu_hours) AS gpu_hours FROM held GROUP BY customer_id
        ) c USING (customer_id)
    )
    SELECT id FROM by_customer ORDER BY priority, customer_share, user_share, queued_at, id
    """
).bindparams(bindparam("half_life_s"), bindparam("remembered_s"))


async def waiting_ids(db: AsyncSession) -> list[str]:
    """Ids of the requests that wait for their turn, the next one first. One statement."""
    half_life_s = await platform_settings.value(db, QUEUE_HALF_LIFE_S)
    found = await db.scalars(
        _ORDER, {"half_life_s": half_life_s, "remembered_s": half_life_s * REMEMBERED_HALF_LIVES}
    )
    return list(found.all())


async def positions(db: AsyncSession) -> dict[str, int]:
    """The place in the queue of every request that waits for its turn; 1 is next."""
    return {ask_id: place for place, ask_id in enumerate(await waiting_ids(db), start=1)}
