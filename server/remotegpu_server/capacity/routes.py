"""Endpoint of what is free."""

from __future__ import annotations

from remotegpu.types.hosts import Capacity
from remotegpu_server import authz
from remotegpu_server.authz import Action
from remotegpu_server.capacity import service
from remotegpu_server.deps import Caller, Db
from remotegpu_server.routing import api_router

router = api_router("hosts")


@router.get("/v1/capacity", summary="What could start now")
async def get_capacity(db: Db, caller: Caller) -> Capacity:
    """Free and total GPUs by model. Says nothing about other people's work."""
    authz.require(caller, Action.CAPACITY_READ)
    return await service.get_capacity(db)
