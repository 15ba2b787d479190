"""The one place that moves a save; its end is an event, and told to who asked for it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import StateConflict
from remotegpu.types.image_saves import ImageSaveReason
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.transitions import IMAGE_SAVE_STATUS
from remotegpu_server.events import service as events
from remotegpu_server.notifications import service as notifications

LIVE = ("requested", "saving")


async def locked(db: AsyncSession, *, save_id: str) -> tables.ImageSave | None:
    """The row, locked; the caller has locked its host, as everywhere."""
    row = tables.ImageSave
    found: tables.ImageSave | None = await db.scalar(
        select(row).where(row.id == save_id).with_for_update().execution_options(populate_existing=True)
    )
    return found


async def move(db: AsyncSession, *, save: tables.ImageSave, to: str, **values: Any) -> tables.ImageSave:
    """Write a status of a locked row. Raises :class:`StateConflict` for an illegal move."""
    if to != save.status and to not in IMAGE_SAVE_STATUS[save.status]:
        raise StateConflict(f"The save is {save.status}; it cannot become {to}.")
    row = tables.ImageSave
    changed: tables.ImageSave | None = await db.scalar(
        update(row)
        .where(row.id == save.id)
        .values(status=to, **values)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert changed is not None, "the row is locked"
    return changed


async def finish(db: AsyncSession, *, save: tables.ImageSave, image_id: str, actor: Actor) -> None:
    """The image is in the catalogue."""
    save = await move(
        db,
        save=save,
        to="done",
        image_id=image_id,
        message=f"Image {save.image_name} is there. It starts on the host where it was saved.",
        finished_at=func.now(),
    )
    await record(db, save, what="done", actor=actor)
    await _tell(db, save, what="done", level="info")


async def fail(
    db: AsyncSession, *, save: tables.ImageSave, reason: ImageSaveReason, message: str, actor: Actor
) -> None:
    """No image came of it."""
    save = await move(db, save=save, to="failed", reason=str(reason), message=message, finished_at=func.now())
    await record(db, save, what="failed", actor=actor)
    await _tell(db, save, what="failed", level="error")


async def cancel(db: AsyncSession, *, save: tables.ImageSave, actor: Actor) -> tables.ImageSave:
    """Somebody took it back. Who asked for it is told, if somebody else did."""
    save = await move(
        db,
        save=save,
        to="cancelled",
        message=f"{actor.name} cancelled the save as image {save.image_name}.",
        finished_at=func.now(),
    )
    await record(db, save, what="cancelled", actor=actor)
    if save.requested_by != actor.user_id:
        await _tell(db, save, what="cancelled", level="warning")
    return save


async def record(db: AsyncSession, save: tables.ImageSave, *, what: str, actor: Actor) -> None:
    """An event of the environment, for those who see that."""
    wanted = tables.Environment
    owner_id, customer_id = (
        await db.execute(select(wanted.owner_id, wanted.customer_id).where(wanted.id == save.environment_id))
    ).one()
    await events.record(
        db,
        kind=f"environment.image_save_{what}",
        subject_type="environment",
        subject_id=save.environment_id,
        actor=actor,
        message=save.message,
        reason=save.reason,
        data={"save_id": save.id, "image_name": save.image_name, "image_id": save.image_id},
        customer_id=customer_id,
        user_id=owner_id,
        workspace_id=save.workspace_id,
    )


async def _tell(db: AsyncSession, save: tables.ImageSave, *, what: str, level: notifications.Level) -> None:
    await notifications.tell(
        db,
        user_ids=[save.requested_by],
        kind=f"image_save.{what}",
        level=level,
        message=save.message,
        subject_type="environment",
        subject_id=save.environment_id,
        data={"save_id": save.id, "image_id": save.image_id},
        dedupe_key=f"image-save:{save.id}",
    )
