"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.image_saves import ImageSave, ImageSaveReason, ImageSaveStatus
from remotegpu_server.db import tables


def to_wire(row: tables.ImageSave) -> ImageSave:
    """One save."""
    return ImageSave(
        id=row.id,
        environment_id=row.environment_id,
        generation=row.generation,
        image_name=row.image_name,
        image_id=row.image_id,
        workspace_id=row.workspace_id,
        requested_by_id=row.requested_by,
        host_id=row.host_id,
        status=ImageSaveStatus(row.status),
        reason=None if row.reason is None else ImageSaveReason(row.reason),
        message=row.message,
        progress_bytes=row.progress_bytes,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
