"""Streams of rows that never hide one: positions, and server-sent events that go on.

A position is ``<xid>.<id>``. Only rows of transactions older than every running one are read, so whatever
commits later has a later position.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, func, literal, text, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.requests import Request
from starlette.responses import StreamingResponse

from remotegpu.errors import ApiError, Invalid
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import Signals
from remotegpu_server.deps import identify

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_S = 15.0
RECHECK_S = 3.0
"""How often a quiet stream looks by itself, and whether its token still works."""
BATCH = 200
_SETTLE_S = (0.02, 0.1, 0.5)
"""After a hint without a row: another transaction is still running, so look again soon."""
_POSITION = re.compile(r"(\d{1,20})\.(\d{1,19})")


@dataclass(frozen=True, order=True)
class Position:
    """Where a reader stands: everything up to here was read."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid}.{self.id}"


BEGINNING = Position(0, 0)


def parse_position(value: str) -> Position:
    """The position in an event's id; ``0`` is the beginning. Raises ``Invalid``."""
    if value == "0":
        return BEGINNING
    found = _POSITION.fullmatch(value)
    if found is None or int(found.group(1)) >= 2**64 or int(found.group(2)) >= 2**63:
        raise Invalid("This is not the id of an event.", hint="Pass the id of the last event seen, or 0.")
    return Position(int(found.group(1)), int(found.group(2)))


def settled_after(xid: Any, number: Any, after: Position) -> ColumnElement[bool]:
    """Rows behind a position that nothing can come before any more."""
    start = cast(cast(literal(str(after.xid)), Text), tables.Xid8())
    return and_(
        tuple_(xid, number) > tuple_(start, literal(after.id)),
        xid < func.pg_snapshot_xmin(func.pg_current_snapshot()),
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """One row as a stream shows it: the name of the event and its data as JSON."""

    position: Position
    event: str
    data: str

    def __bytes__(self) -> bytes:
        return f"id: {self.position}\nevent: {self.event}\ndata: {self.data}\n\n".encode()


async def follow(
    sessions: async_sessionmaker[AsyncSession],
    signals: Signals,
    *,
    key: str,
    read: Callable[[AsyncSession, Actor, Position], Awaitable[Sequence[Frame]]],
    after: Position | None,
    identify: Callable[[AsyncSession], Awaitable[Actor]],
) -> AsyncIterator[bytes]:
    """Server-sent events from ``after`` on, or from now. ``read`` checks the rights and gives at most
    :data:`BATCH`. Ends when the token stops working or the server stops; the client comes back with
    ``Last-Event-ID``.
    """
    position = after
    spoke_at = time.monotonic()
    quiet = 0
    with signals.watch(key) as watch:
        while True:
            try:
                async with sessions() as db:
                    actor = await identify(db)
                    began = position is None
                    if position is None:
                        position = await _now(db)
                    frames = await read(db, actor, position)
            except (ApiError, SQLAlchemyError, OSError) as error:
                code = error.error if isinstance(error, ApiError) else "unavailable"
                yield f"event: end\ndata: {code}\n\n".encode()
                return
            if began:
                # The place to come back to when the connection is cut before the first event.
                yield f"id: {position}\n\n".encode()
            for frame in frames:
                position = frame.position
                yield bytes(frame)
            now = time.monotonic()
            if frames:
                spoke_at = now
                quiet = 0
            elif now - spoke_at >= KEEP_ALIVE_S:
                spoke_at = now
                yield b": keep-alive\n\n"
            if len(frames) == BATCH:
                continue
            pause_s = _SETTLE_S[quiet] if quiet < len(_SETTLE_S) else RECHECK_S
            hinted = await watch.wait(pause_s)
            if signals.stopping:
                return
            quiet = 0 if hinted else quiet + 1


async def _now(db: AsyncSession) -> Position:
    xmin = await db.scalar(text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))
    return Position(int(xmin or 0), 0)


def wanted(request: Request) -> bool:
    """Whether the caller asked for a stream."""
    return EVENT_STREAM in request.headers.get("Accept", "")


def answer(body: AsyncIterator[bytes]) -> StreamingResponse:
    """The stream as an answer that no proxy holds back."""
    return StreamingResponse(
        body, media_type=EVENT_STREAM, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


def identified_again(request: Request) -> Callable[[AsyncSession], Awaitable[Actor]]:
    """Who the caller of a stream is now, at each look."""

    async def ask(db: AsyncSession) -> Actor:
        return await identify(request, db)

    return ask


def documented(example: str) -> dict[int | str, dict[str, Any]]:
    """The stream in the OpenAPI document, beside the page on the same path."""
    return {200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}, "example": example}}}}
