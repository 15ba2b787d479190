"""Endpoints of reservations."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.reservations import Calendar, Reservation, ReservationCreate
from remotegpu.types.wire import Page, UtcTime
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.reservations import service
from remotegpu_server.routing import api_router

router = api_router("reservations")


@router.get("/v1/reservations/calendar", summary="What is promised, and of how much")
async def get_calendar(
    db: Db,
    caller: Caller,
    from_at: Annotated[UtcTime | None, Query(description="Left out: now.")] = None,
    until_at: Annotated[UtcTime | None, Query(description="Left out: two weeks later.")] = None,
) -> Calendar:
    """Others' reservations without whose they are."""
    return await service.get_calendar(db, actor=caller, from_at=from_at, until_at=until_at)


@router.get("/v1/reservations", summary="List reservations")
async def list_reservations(
    db: Db,
    caller: Caller,
    over: Annotated[bool, Query(description="Also those that are over.")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Reservation]:
    """The next to start first. Members see their workspaces', owners their customer's, admins all."""
    return await service.list_reservations(db, actor=caller, over=over, limit=limit, cursor=cursor)


@router.post(
    "/v1/reservations", status_code=201, summary="Reserve GPUs for a period", dependencies=[IDEMPOTENT]
)
async def create_reservation(body: ReservationCreate, db: Db, caller: Caller) -> Reservation:
    """409 ``conflict`` where it does not fit, with the next free slot."""
    return await service.create_reservation(db, actor=caller, body=body)


@router.get("/v1/reservations/{reservation_id}", summary="Get a reservation")
async def get_reservation(reservation_id: str, db: Db, caller: Caller) -> Reservation:
    """With what is in use of it."""
    return await service.get_reservation(db, actor=caller, reservation_id=reservation_id)


@router.post("/v1/reservations/{reservation_id}:cancel", summary="Give a reservation back")
async def cancel_reservation(reservation_id: str, db: Db, caller: Caller) -> Reservation:
    """What runs in it goes on until its end."""
    return await service.cancel_reservation(db, actor=caller, reservation_id=reservation_id)
