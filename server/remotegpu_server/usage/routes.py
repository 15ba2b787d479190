"""Endpoints of usage statistics."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from remotegpu.types.usage import UsageGroup, UsageReport
from remotegpu.types.wire import UtcTime
from remotegpu_server.deps import Caller, Db
from remotegpu_server.routing import api_router
from remotegpu_server.usage import service

router = api_router("usage")

Groups = Annotated[list[UsageGroup], Query(description="Repeatable.")]
Begin = Annotated[UtcTime | None, Query(alias="from", description="Left out: 30 days before `to`.")]
End = Annotated[UtcTime | None, Query(alias="to", description="Left out: now.")]
Customer = Annotated[str | None, Query(max_length=64, description="Id or name.")]
_DAILY = [UsageGroup.DAY]


@router.get("/v1/usage", summary="GPU-hours, allocations and waits (owners, admins)")
async def get_usage(
    db: Db,
    caller: Caller,
    group_by: Groups = _DAILY,
    begin: Begin = None,
    end: End = None,
    customer: Customer = None,
) -> UsageReport:
    """By day, customer, workspace, user and GPU model. Simulated GPUs are rows of their own."""
    return await service.get_usage(
        db, actor=caller, group_by=group_by, begin=begin, end=end, customer=customer
    )


@router.get(
    "/v1/usage.csv",
    summary="The same as CSV (owners, admins)",
    response_class=Response,
    responses={200: {"content": {"text/csv": {}}}},
)
async def get_usage_csv(
    db: Db,
    caller: Caller,
    group_by: Groups = _DAILY,
    begin: Begin = None,
    end: End = None,
    customer: Customer = None,
) -> Response:
    """For spreadsheets: what they would take for a formula is marked as text."""
    report = await service.get_usage(
        db, actor=caller, group_by=group_by, begin=begin, end=end, customer=customer
    )
    return Response(service.to_csv(report), media_type="text/csv")


@router.get("/v1/usage/mine", summary="What the caller used")
async def get_own_usage(
    db: Db, caller: Caller, group_by: Groups = _DAILY, begin: Begin = None, end: End = None
) -> UsageReport:
    """In every workspace."""
    return await service.get_own_usage(db, actor=caller, group_by=group_by, begin=begin, end=end)
