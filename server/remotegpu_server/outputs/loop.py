"""Removing the output and the artifacts of attempts that ended long ago."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import delete, func, select, update

from remotegpu.errors import Unavailable
from remotegpu_server import observability
from remotegpu_server.blobs import FileBlobs
from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work
from remotegpu_server.outputs import logs, queries
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import TASK_OUTPUTS_KEEP_S

BATCH = 200
_log = structlog.get_logger(__name__)


async def remove_old(work: Work) -> None:
    """The bytes first, then what tells of them: a crash between leaves work for the next pass, never bytes
    that nobody knows.
    """
    row, kept = tables.Attempt, tables.Artifact
    blobs = FileBlobs(work.settings.blob_dir)
    async with work.session() as db:
        age = timedelta(seconds=await platform_settings.value(db, TASK_OUTPUTS_KEEP_S))
        found = await db.scalars(
            select(row.id)
            .where(row.output_removed_at.is_(None), row.finished_at < func.now() - age, queries.is_released())
            .order_by(row.finished_at)
            .limit(BATCH)
        )
        old = list(found.all())
    gone: list[str] = []
    for attempt_id in old:
        try:
            await blobs.remove(logs.blob_of(attempt_id))
            await blobs.remove(f"artifacts/{attempt_id}")
        except (OSError, Unavailable) as error:  # its rows still tell of it, so the next pass tries again
            _log.error("output_not_removed", attempt=attempt_id, error=str(error))
            observability.LOOP_ITEM_FAILURES.labels("task-outputs").inc()
        else:
            gone.append(attempt_id)
    async with work.session() as db:
        await db.execute(delete(kept).where(kept.attempt_id.in_(gone)))
        await db.execute(
            update(row)
            .where(row.id.in_(gone))
            .values(output_removed_at=func.now())
            .execution_options(synchronize_session=False)
        )


LOOP = Loop(name="task-outputs", every_s=60.0, run=remove_old)
