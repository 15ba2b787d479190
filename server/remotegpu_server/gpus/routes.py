"""Endpoint of GPUs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.hosts import Gpu, GpuCheck, GpuRestore
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.gpus import checks, service
from remotegpu_server.routing import api_router

router = api_router("hosts")


@router.get("/v1/gpus", summary="List GPUs")
async def list_gpus(
    db: Db,
    caller: Caller,
    host: Annotated[str | None, Query(max_length=64, description="Id or name of a host.")] = None,
    model: Annotated[str | None, Query(max_length=256)] = None,
    free: Annotated[
        bool | None, Query(description="Only GPUs that could be taken now, or only others.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Gpu]:
    """Holders are named only to themselves, the owners of their customer, and admins."""
    return await service.list_gpus(
        db, actor=caller, host=host, model=model, free=free, limit=limit, cursor=cursor
    )


@router.post("/v1/gpus/{gpu}:check", summary="Have a GPU tested (admins)")
async def check_gpu(gpu: str, db: Db, caller: Caller) -> GpuCheck:
    """By id or UUID. Its agent does it; passed, an unhealthy GPU takes work again."""
    return await checks.request_check(db, actor=caller, gpu=gpu)


@router.post("/v1/gpus/{gpu}:restore", summary="Take an unhealthy GPU back (admins)")
async def restore_gpu(gpu: str, body: GpuRestore, db: Db, caller: Caller) -> Gpu:
    """Without a check: the admin's word, kept in the audit trail. Only another reason takes it out again."""
    return await checks.restore(db, actor=caller, gpu=gpu, body=body)
