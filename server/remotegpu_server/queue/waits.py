"""Keeping what waiting requests are told, and comparing it with what came true."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.queue import EstimateAccuracy, Wait
from remotegpu_server import authz, observability
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.placing import Ask
from remotegpu_server.queue import outlook
from remotegpu_server.queue import snapshot as snapshots

JUDGED = timedelta(days=30)
_ASKS = ("environments", "tasks")
_MESSAGES = tuple(
    text(
        f"UPDATE {asks} SET message = new.value"  # noqa: S608  names of this file
        " FROM jsonb_each_text(CAST(:new AS jsonb)) AS new WHERE id = new.key AND status = 'pending'"
    )
    for asks in _ASKS
)
_OUTLOOKS = tuple(
    text(
        f"UPDATE {asks} SET outlook = new.value"  # noqa: S608  names of this file
        " FROM jsonb_each(CAST(:new AS jsonb)) AS new WHERE id = new.key AND status = 'pending'"
    )
    for asks in _ASKS
)
_STARTED = (
    text(
        """
        UPDATE start_estimates s SET started_at = p.placed_at FROM placements p
        WHERE s.started_at IS NULL AND p.environment_id = s.ask_id AND p.generation = s.generation
        RETURNING extract(epoch FROM s.p50_at - p.placed_at)
        """
    ),
    text(
        """
        UPDATE start_estimates s SET started_at = p.placed_at
        FROM attempts a JOIN placements p ON p.attempt_id = a.id
        WHERE s.started_at IS NULL AND a.task_id = s.ask_id AND p.generation = s.generation
        RETURNING extract(epoch FROM s.p50_at - p.placed_at)
        """
    ),
)
"""Apart, so that each finds its few by an index."""


async def store_messages(db: AsyncSession, *, messages: Mapping[str, str]) -> None:
    """New words of the same reason, in one statement. No event: nothing was decided."""
    for statement in _MESSAGES:
        await db.execute(statement, {"new": json.dumps(dict(messages))})


async def store_reason(db: AsyncSession, *, environment_id: str, reason: str, message: str) -> None:
    """Let a request that is only asked about, or about to be refused, wait like a real one."""
    row = tables.Environment
    await db.execute(
        update(row)
        .where(row.id == environment_id)
        .values(reason=reason, message=message)
        .execution_options(synchronize_session=False)
    )


async def refresh(db: AsyncSession, *, only: frozenset[str] | None = None) -> dict[str, Wait]:
    """Work out the answers anew and keep them, of all waiting requests or of ``only`` these."""
    snapshot = await snapshots.take(db)
    if not snapshot.waiting:
        return {}
    past = await snapshots.past_runs(db)
    answers = outlook.outlooks(snapshot, past, snapshots.certain_starts_s(snapshot), only=only)
    asks = {one.ask.id: one.ask for one in snapshot.waiting}
    await _store(db, answers, asks=asks)
    return answers


async def _store(db: AsyncSession, answers: Mapping[str, Wait], *, asks: Mapping[str, Ask]) -> None:
    """Only what is news: a long queue that stands still writes nothing."""
    now = {key: wait.model_dump(mode="json") for key, wait in answers.items()}
    new = {key: told for key, told in now.items() if told != asks[key].outlook}
    if not new:
        return
    for statement in _OUTLOOKS:
        await db.execute(statement, {"new": json.dumps(new)})
    first = [
        {
            "ask_id": key,
            "generation": asks[key].generation,
            "p50_at": wait.estimate.p50_at,
            "p90_at": wait.estimate.p90_at,
            "basis": str(wait.estimate.basis),
        }
        for key, wait in answers.items()
        if wait.estimate is not None
    ]
    if first:
        await db.execute(upsert(tables.StartEstimate).on_conflict_do_nothing(), first)


async def compare(db: AsyncSession) -> int:
    """Set the first estimates beside the real starts; answers how many started. Who gave up is forgotten."""
    errors_s = [
        abs(float(error_s)) for statement in _STARTED for error_s in (await db.execute(statement)).scalars()
    ]
    for error_s in errors_s:
        observability.ESTIMATE_ERROR_SECONDS.observe(error_s)
    await db.execute(
        text(
            """
            DELETE FROM start_estimates s WHERE s.started_at IS NULL AND NOT EXISTS (
                SELECT FROM environments e
                WHERE e.id = s.ask_id AND e.generation = s.generation AND e.status = 'pending'
                UNION ALL SELECT FROM tasks t
                WHERE t.id = s.ask_id AND t.generation = s.generation AND t.status = 'pending')
            """
        )
    )
    if errors_s:
        observability.ESTIMATE_MEDIAN_ERROR_SECONDS.set((await accuracy(db)).median_error_s or 0.0)
    return len(errors_s)


async def get_accuracy(db: AsyncSession, *, actor: Actor) -> EstimateAccuracy:
    """How good the estimates of the last 30 days were."""
    authz.require(actor, Action.QUEUE_ACCURACY)
    return await accuracy(db)


async def accuracy(db: AsyncSession) -> EstimateAccuracy:
    """The same without asking who wants to know."""
    row = tables.StartEstimate
    error_s = func.abs(func.extract("epoch", row.p50_at - row.started_at))
    found = await db.execute(
        select(
            func.now() - JUDGED,
            func.count(),
            func.percentile_cont(0.5).within_group(error_s),
            func.percentile_cont(0.9).within_group(error_s),
            100.0 * func.count().filter(row.started_at <= row.p90_at) / func.nullif(func.count(), 0),
        ).where(row.started_at > func.now() - JUDGED)
    )
    since, starts, median_s, p90_s, before = found.one()
    return EstimateAccuracy(
        since=since,
        starts=starts,
        median_error_s=median_s,
        p90_error_s=p90_s,
        before_p90_percent=None if before is None else float(before),
    )
