"""Endpoints of saves. The agent's one is in ``agents.routes``."""

from __future__ import annotations

from remotegpu.types.image_saves import ImageSave, ImageSaveCreate
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.image_saves import service
from remotegpu_server.routing import api_router

router = api_router("environments")


@router.post(
    "/v1/environments/{environment_id}:save-image",
    status_code=202,
    summary="Save as an image",
    dependencies=[IDEMPOTENT],
)
async def save_image(environment_id: str, body: ImageSaveCreate, db: Db, caller: Caller) -> ImageSave:
    """Its file system without the home becomes an image of its workspace, on its host. It must be running."""
    return await service.save_image(db, actor=caller, environment_id=environment_id, body=body)


@router.get("/v1/environments/{environment_id}/image-saves", summary="Saves of an environment")
async def list_image_saves(
    environment_id: str, db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None
) -> Page[ImageSave]:
    """Newest first, with their progress."""
    return await service.list_image_saves(
        db, actor=caller, environment_id=environment_id, limit=limit, cursor=cursor
    )


@router.post("/v1/image-saves/{save_id}:cancel", summary="Cancel a save")
async def cancel_image_save(save_id: str, db: Db, caller: Caller) -> ImageSave:
    """Its host removes what was made of it. 409 when it is over."""
    return await service.cancel(db, actor=caller, save_id=save_id)
