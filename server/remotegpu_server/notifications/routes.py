"""What the caller is told, and how."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from remotegpu.types.notifications import (
    Notification,
    NotificationCount,
    NotificationKind,
    NotificationPreference,
    NotificationPreferences,
    NotificationPreferenceUpdate,
)
from remotegpu.types.wire import Page
from remotegpu_server import streams
from remotegpu_server.authz import Action, require
from remotegpu_server.deps import Caller, Cursor, Db, DetachedCaller, Limit, Sessions, SignalsDep
from remotegpu_server.notifications import inbox, preferences
from remotegpu_server.notifications.service import stream_key
from remotegpu_server.routing import api_router

router = api_router("notifications")

_STREAM = streams.documented('id: 771.42\nevent: alert.triggered\ndata: {"id": "ntf-...", ...}\n\n')
Kind = Annotated[NotificationKind, Path(description="A kind, a noun, or `*`.")]


@router.get(
    "/v1/notifications",
    summary="List the own notifications",
    response_model=Page[Notification],
    responses=_STREAM,
)
async def list_notifications(
    request: Request,
    sessions: Sessions,
    signals: SignalsDep,
    caller: DetachedCaller,
    unread: Annotated[bool, Query(description="Only those that were not read.")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Page[Notification] | Response:
    """Newest first. With `Accept: text/event-stream` a stream that goes on, oldest first: from
    `Last-Event-ID` (`0` is the beginning), or from now on without it. A comment comes every 15 seconds when
    nothing happens.
    """
    require(caller, Action.NOTIFICATION_READ)
    if not streams.wanted(request):
        async with sessions() as db:
            return await inbox.list_notifications(db, actor=caller, unread=unread, limit=limit, cursor=cursor)
    body = streams.follow(
        sessions,
        signals,
        key=stream_key(caller.user_id or ""),
        read=inbox.frames,
        after=streams.parse_position(last_event_id) if last_event_id else None,
        identify=streams.identified_again(request),
    )
    return streams.answer(body)


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


@router.get("/v1/notification-preferences", summary="How the caller is told")
async def list_preferences(db: Db, caller: Caller) -> NotificationPreferences:
    """What was set; of the rest errors are mailed at once and warnings in a digest."""
    return await preferences.list_preferences(db, actor=caller)


@router.put("/v1/notification-preferences/{kind}", summary="Set how to be told of a kind")
async def put_preference(
    kind: Kind, body: NotificationPreferenceUpdate, db: Db, caller: Caller
) -> NotificationPreference:
    """Of a kind (`environment.stops_soon`), a noun (`environment`) or everything (`*`); the closest
    counts.
    """
    return await preferences.put_preference(db, actor=caller, kind=kind, body=body)


@router.delete("/v1/notification-preferences/{kind}", status_code=204, summary="Forget a preference")
async def delete_preference(kind: Kind, db: Db, caller: Caller) -> None:
    """What is set for more counts again."""
    await preferences.delete_preference(db, actor=caller, kind=kind)
