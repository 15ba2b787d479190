"""Endpoints of schedules."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.task_schedules import TaskSchedule, TaskScheduleCreate, TaskScheduleUpdate
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router
from remotegpu_server.task_schedules import service

router = api_router("task-schedules")


@router.get("/v1/task-schedules", summary="List schedules")
async def list_schedules(
    db: Db,
    caller: Caller,
    owner: Annotated[str | None, Query(max_length=64, description="Name or id of the owner.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[TaskSchedule]:
    """Newest first; those whose tasks the caller may see."""
    return await service.list_schedules(db, actor=caller, owner=owner, limit=limit, cursor=cursor)


@router.post(
    "/v1/task-schedules", status_code=201, summary="Submit a task regularly", dependencies=[IDEMPOTENT]
)
async def create_schedule(body: TaskScheduleCreate, db: Db, caller: Caller) -> TaskSchedule:
    """As its owner, at the times of a cron expression in a time zone. Missed times come as one."""
    return await service.create(db, actor=caller, body=body)


@router.get("/v1/task-schedules/{schedule_id}", summary="One schedule")
async def get_schedule(schedule_id: str, db: Db, caller: Caller) -> TaskSchedule:
    """When it comes next, and how it went last."""
    return await service.get(db, actor=caller, schedule_id=schedule_id)


@router.patch("/v1/task-schedules/{schedule_id}", summary="Change a schedule")
async def update_schedule(schedule_id: str, body: TaskScheduleUpdate, db: Db, caller: Caller) -> TaskSchedule:
    """What is named. The task itself is its owner's to change, because it runs as the owner."""
    return await service.change(db, actor=caller, schedule_id=schedule_id, body=body)


@router.delete("/v1/task-schedules/{schedule_id}", status_code=204, summary="Delete a schedule")
async def delete_schedule(schedule_id: str, db: Db, caller: Caller) -> None:
    """Its tasks stay, and what runs goes on."""
    await service.delete(db, actor=caller, schedule_id=schedule_id)
