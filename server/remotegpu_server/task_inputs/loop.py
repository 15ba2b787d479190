"""Removing inputs that no task needs any more."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select

from remotegpu_server.blobs import FileBlobs
from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import TASK_INPUTS_KEEP_S
from remotegpu_server.task_inputs import service

BATCH = 200
LEFT_BEHIND = timedelta(minutes=10)
"""Whoever marked it so long ago is gone."""


async def remove_unneeded(work: Work) -> None:
    """Mark, remove the bytes, then forget them: a crash between leaves work for a later pass."""
    row = tables.TaskInput
    async with work.session() as db:
        keep = timedelta(seconds=await platform_settings.value(db, TASK_INPUTS_KEEP_S))
        unneeded = row.removing_at.is_(None) & service.unneeded(keep, ended=keep)
        found = await db.scalars(select(row.id).where(unneeded).order_by(row.used_at).limit(BATCH))
        doomed = await service.mark(db, list(found), unneeded)
        left = await db.scalars(select(row.id).where(row.removing_at < func.now() - LEFT_BEHIND).limit(BATCH))
        doomed += list(left)
    await service.remove(work.database.sessions, FileBlobs(work.settings.blob_dir), doomed)


LOOP = Loop(name="task-inputs", every_s=60.0, run=remove_unneeded)
