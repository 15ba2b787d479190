"""Endpoints of volumes. The agent's ones are in ``agents.routes``."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.volumes import Volume
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.routing import api_router
from remotegpu_server.volumes import service

router = api_router("volumes")


@router.get("/v1/volumes", summary="List volumes")
async def list_volumes(
    db: Db,
    caller: Caller,
    owner: Annotated[str | None, Query(description="User name or id.")] = None,
    host: Annotated[str | None, Query(description="Name or id of the host whose disk it is on.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Volume]:
    """Those that exist, oldest first: the own ones; owners see their customer's, admins all."""
    return await service.list_volumes(db, actor=caller, owner=owner, host=host, limit=limit, cursor=cursor)


@router.get("/v1/volumes/{volume_id}", summary="Get a volume")
async def get_volume(volume_id: str, db: Db, caller: Caller) -> Volume:
    """A removed one too."""
    return await service.get_volume(db, actor=caller, volume_id=volume_id)


@router.delete("/v1/volumes/{volume_id}", status_code=202, summary="Delete a volume")
async def delete_volume(volume_id: str, db: Db, caller: Caller) -> Volume:
    """With everything in it, for good. `removing` until its host has confirmed that; 409 while it is used."""
    return await service.delete_volume(db, actor=caller, volume_id=volume_id)
