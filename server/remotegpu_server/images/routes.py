"""Endpoints of the allow-list."""

from __future__ import annotations

from remotegpu.types.images import Image, ImageCreate, ImageUpdate
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.images import service
from remotegpu_server.routing import api_router

router = api_router("images")


@router.get("/v1/images", summary="List images")
async def list_images(db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Page[Image]:
    """By name, withdrawn ones included."""
    return await service.list_images(db, actor=caller, limit=limit, cursor=cursor)


@router.post("/v1/images", status_code=201, summary="Allow an image (admins)", dependencies=[IDEMPOTENT])
async def create_image(body: ImageCreate, db: Db, caller: Caller) -> Image:
    """Environments may use it at once."""
    return await service.create_image(db, actor=caller, body=body)


@router.get("/v1/images/{image}", summary="Get an image")
async def get_image(image: str, db: Db, caller: Caller) -> Image:
    """By id or name."""
    return await service.get_image(db, actor=caller, image=image)


@router.patch("/v1/images/{image}", summary="Change or withdraw an image (admins)")
async def update_image(image: str, body: ImageUpdate, db: Db, caller: Caller) -> Image:
    """Counts from the next start on; running environments keep what they have."""
    return await service.update_image(db, actor=caller, image=image, body=body)
