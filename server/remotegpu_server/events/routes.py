"""Events, as pages and as a stream on the same path."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query
from starlette.requests import Request
from starlette.responses import Response

from remotegpu.types.events import Event
from remotegpu.types.wire import Page
from remotegpu_server import streams
from remotegpu_server.authz import Action, require
from remotegpu_server.deps import DetachedCaller, Limit, Sessions, SignalsDep
from remotegpu_server.events import stream
from remotegpu_server.events.service import STREAM_KEY
from remotegpu_server.routing import api_router

router = api_router("events")

_STREAM = streams.documented('id: 771.42\nevent: environment.status\ndata: {"id": "771.42", ...}\n\n')


@router.get("/v1/events", summary="What happened", response_model=Page[Event], responses=_STREAM)
async def list_events(
    request: Request,
    sessions: Sessions,
    signals: SignalsDep,
    caller: DetachedCaller,
    subject_type: Annotated[str | None, Query(max_length=32)] = None,
    subject_id: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[
        str | None, Query(max_length=64, description="Id of the last event seen; `0` is the beginning.")
    ] = None,
    cursor: Annotated[
        str | None, Query(max_length=64, description="`next_cursor` of the page before.")
    ] = None,
    limit: Limit = 50,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Page[Event] | Response:
    """Oldest first. With `Accept: text/event-stream` a stream that goes on: from `Last-Event-ID` or `after`,
    or from now on without either. A comment comes every 15 seconds when nothing happens.
    """
    require(caller, Action.EVENTS_READ)
    wanted = stream.Filter(subject_type=subject_type, subject_id=subject_id)
    if not streams.wanted(request):
        start = streams.parse_position(cursor or after or "0")
        async with sessions() as db:
            return await stream.read_page(db, caller, wanted, after=start, limit=limit)
    given = last_event_id or after
    body = streams.follow(
        sessions,
        signals,
        key=STREAM_KEY,
        read=stream.frames(wanted),
        after=streams.parse_position(given) if given else None,
        identify=streams.identified_again(request),
    )
    return streams.answer(body)
