"""Endpoints of the allow-list."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.images import (
    Image,
    ImageCreate,
    ImageStatus,
    ImageUpdate,
    WorkspaceImages,
    WorkspaceImagesUpdate,
)
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.images import allow_lists, service
from remotegpu_server.routing import api_router

router = api_router("images")

Label = Annotated[str | None, Query(max_length=64)]
Search = Annotated[
    str | None, Query(max_length=64, description="Part of a name, the description or the framework.")
]


@router.get("/v1/images", summary="List images")
async def list_images(
    db: Db,
    caller: Caller,
    status: ImageStatus | None = None,
    framework: Label = None,
    category: Label = None,
    search: Search = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Image]:
    """By name, withdrawn ones included. Inactive ones, and those for others, only admins see."""
    which = service.ImageFilter(status, framework, category, search)
    return await service.list_images(db, actor=caller, which=which, limit=limit, cursor=cursor)


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


@router.get("/v1/workspaces/{workspace}/images", summary="The images that a workspace may use")
async def get_workspace_images(workspace: str, db: Db, caller: Caller) -> WorkspaceImages:
    """Not restricted: every image that it sees."""
    return await allow_lists.get_allow_list(db, actor=caller, workspace_id=workspace)


@router.put("/v1/workspaces/{workspace}/images", summary="Set the images of a workspace (owners, admins)")
async def set_workspace_images(
    workspace: str, body: WorkspaceImagesUpdate, db: Db, caller: Caller
) -> WorkspaceImages:
    """Counts from the next start on; `null` takes the restriction away."""
    return await allow_lists.set_allow_list(db, actor=caller, workspace_id=workspace, body=body)
