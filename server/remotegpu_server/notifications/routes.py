"""What the caller is told."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.notifications import Notification, NotificationCount
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.notifications import inbox
from remotegpu_server.routing import api_router

router = api_router("notifications")


@router.get("/v1/notifications", summary="List the own notifications")
async def list_notifications(
    db: Db,
    caller: Caller,
    unread: Annotated[bool, Query(description="Only those that were not read.")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Notification]:
    """Newest first."""
    return await inbox.list_notifications(db, actor=caller, unread=unread, limit=limit, cursor=cursor)


@router.get("/v1/notifications/unread", summary="Count the unread notifications")
async def count_unread_notifications(db: Db, caller: Caller) -> NotificationCount:
    """For a badge; one index lookup."""
    return await inbox.count_unread(db, actor=caller)


@router.post("/v1/notifications/{notification_id}:read", summary="Mark a notification as read")
async def read_notification(notification_id: str, db: Db, caller: Caller) -> Notification:
    """404 for somebody else's."""
    return await inbox.read_one(db, actor=caller, notification_id=notification_id)


@router.post("/v1/notifications:read-all", summary="Mark all notifications as read")
async def read_all_notifications(db: Db, caller: Caller) -> NotificationCount:
    """Those that are there now."""
    return await inbox.read_all(db, actor=caller)
