"""Endpoints of dedications."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.dedications import (
    Dedication,
    DedicationCreate,
    DedicationEnd,
    DedicationExtend,
    DedicationReclaim,
)
from remotegpu.types.wire import Page
from remotegpu_server.dedications import service
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router

router = api_router("dedications")


@router.get("/v1/dedications", summary="List dedications of hosts")
async def list_dedications(
    db: Db,
    caller: Caller,
    host: Annotated[str | None, Query(max_length=64, description="Id or name of a host.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Dedication]:
    """Newest first. Admins see all, others those of their own customer and workspaces."""
    return await service.list_dedications(db, actor=caller, host=host, limit=limit, cursor=cursor)


@router.post("/v1/dedications", status_code=201, summary="Lend a host (admins)", dependencies=[IDEMPOTENT])
async def create_dedication(body: DedicationCreate, db: Db, caller: Caller) -> Dedication:
    """To a customer or a workspace, for a period that overlaps no other of this host."""
    return await service.create_dedication(db, actor=caller, body=body)


@router.get("/v1/dedications/{dedication}", summary="Get a dedication")
async def get_dedication(dedication: str, db: Db, caller: Caller) -> Dedication:
    """With the steps of its clean-up."""
    return await service.get_dedication(db, actor=caller, dedication=dedication)


@router.post("/v1/dedications/{dedication}:extend", summary="Another end (admins)")
async def extend_dedication(dedication: str, body: DedicationExtend, db: Db, caller: Caller) -> Dedication:
    """Refused where the next period of the host begins."""
    return await service.extend(db, actor=caller, dedication=dedication, body=body)


@router.post("/v1/dedications/{dedication}:end", summary="End it early (admins)")
async def end_dedication(dedication: str, body: DedicationEnd, db: Db, caller: Caller) -> Dedication:
    """The grace begins; before its beginning it is cancelled."""
    return await service.end(db, actor=caller, dedication=dedication, body=body)


@router.post("/v1/dedications/{dedication}:reclaim", summary="Clean up now (admins)")
async def reclaim_dedication(dedication: str, body: DedicationReclaim, db: Db, caller: Caller) -> Dedication:
    """Refused (`in_use`) while work runs, unless forced. Again: failed steps begin anew."""
    return await service.reclaim(db, actor=caller, dedication=dedication, body=body)
