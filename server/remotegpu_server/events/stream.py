"""Reading events in an order that never hides one, as pages and as a stream.

A position is ``<xid>.<id>``. Only rows of transactions older than every running one are read, so whatever
commits later has a later position.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import Select, func, literal_column, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import ApiError, Invalid
from remotegpu.types.events import Event
from remotegpu.types.wire import Page
from remotegpu_server.authz import Action, Actor, require, visibility
from remotegpu_server.db import tables
from remotegpu_server.db.notify import Signals
from remotegpu_server.events.convert import to_wire
from remotegpu_server.events.service import STREAM_KEY

KEEP_ALIVE_S = 15.0
RECHECK_S = 3.0
"""How often a quiet stream looks by itself, and whether its token still works."""
_SETTLE_S = (0.02, 0.1, 0.5)
"""After a hint without a row: another transaction is still running, so look again soon."""
_BATCH = 200
_POSITION = re.compile(r"(\d{1,20})\.(\d{1,19})")


@dataclass(frozen=True, order=True)
class Position:
    """Where a reader stands: everything up to here was read."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid}.{self.id}"


BEGINNING = Position(0, 0)


@dataclass(frozen=True)
class Filter:
    """Which events are wanted."""

    subject_type: str | None = None
    subject_id: str | None = None


def parse_position(value: str) -> Position:
    """The position in an event's id; ``0`` is the beginning. Raises ``Invalid``."""
    if value == "0":
        return BEGINNING
    found = _POSITION.fullmatch(value)
    if found is None or int(found.group(1)) >= 2**64 or int(found.group(2)) >= 2**63:
        raise Invalid("This is not the id of an event.", hint="Pass the id of the last event seen, or 0.")
    return Position(int(found.group(1)), int(found.group(2)))


async def read_page(
    db: AsyncSession, actor: Actor, wanted: Filter, *, after: Position, limit: int
) -> Page[Event]:
    """Events after a position, oldest first; ``next_cursor`` is where the next page starts."""
    require(actor, Action.EVENTS_READ)
    rows = await _read(db, actor, wanted, after=after, limit=limit)
    following = str(_position(rows[-1])) if len(rows) == limit else None
    return Page[Event](items=[to_wire(row) for row in rows], next_cursor=following)


async def follow(
    sessions: async_sessionmaker[AsyncSession],
    signals: Signals,
    wanted: Filter,
    *,
    after: Position | None,
    identify: Callable[[AsyncSession], Awaitable[Actor]],
) -> AsyncIterator[bytes]:
    """Server-sent events from ``after`` on, or from now. Ends when the token stops working or the server
    stops; the client comes back with ``Last-Event-ID``.
    """
    position = after
    spoke_at = time.monotonic()
    quiet = 0
    with signals.watch(STREAM_KEY) as watch:
        while True:
            try:
                async with sessions() as db:
                    actor = await identify(db)
                    require(actor, Action.EVENTS_READ)
                    began = position is None
                    if position is None:
                        position = await _now(db)
                    rows = await _read(db, actor, wanted, after=position, limit=_BATCH)
            except (ApiError, SQLAlchemyError, OSError) as error:
                code = error.error if isinstance(error, ApiError) else "unavailable"
                yield f"event: end\ndata: {code}\n\n".encode()
                return
            if began:
                # The place to come back to when the connection is cut before the first event.
                yield f"id: {position}\n\n".encode()
            for row in rows:
                position = _position(row)
                yield _frame(row)
            now = time.monotonic()
            if rows:
                spoke_at = now
                quiet = 0
            elif now - spoke_at >= KEEP_ALIVE_S:
                spoke_at = now
                yield b": keep-alive\n\n"
            if len(rows) == _BATCH:
                continue
            pause_s = _SETTLE_S[quiet] if quiet < len(_SETTLE_S) else RECHECK_S
            hinted = await watch.wait(pause_s)
            if signals.stopping:
                return
            quiet = 0 if hinted else quiet + 1


def _frame(row: tables.Event) -> bytes:
    return f"id: {_position(row)}\nevent: {row.kind}\ndata: {to_wire(row).model_dump_json()}\n\n".encode()


def _position(row: tables.Event) -> Position:
    return Position(int(row.xid), row.id)


async def _now(db: AsyncSession) -> Position:
    xmin = await db.scalar(text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))
    return Position(int(xmin or 0), 0)


async def _read(
    db: AsyncSession, actor: Actor, wanted: Filter, *, after: Position, limit: int
) -> list[tables.Event]:
    event = tables.Event
    query: Select[tables.Event] = (
        select(event)
        .where(
            text("(events.xid, events.id) > (CAST(CAST(:xid AS text) AS xid8), :id)").bindparams(
                xid=str(after.xid), id=after.id
            ),
            event.xid < func.pg_snapshot_xmin(func.pg_current_snapshot()),
        )
        .order_by(literal_column("events.xid"), event.id)
        .limit(limit)
    )
    seen = visibility(actor)
    if seen.environment_id is not None:
        itself = (event.subject_type == "environment") & (event.subject_id == seen.environment_id)
        query = query.where(itself | ((event.subject_type == "task") & (event.user_id == seen.user_id)))
    elif not seen.everything:
        own = (
            (event.user_id == seen.user_id) & event.workspace_id.is_(None)
            if seen.customer_id is None
            else event.customer_id == seen.customer_id
        )
        query = query.where(own | event.workspace_id.in_(seen.workspace_ids))
    if wanted.subject_type is not None:
        query = query.where(event.subject_type == wanted.subject_type)
    if wanted.subject_id is not None:
        query = query.where(event.subject_id == wanted.subject_id)
    return list(await db.scalars(query))
