"""Reading events in an order that never hides one, as pages and as frames of a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.events import Event
from remotegpu.types.wire import Page
from remotegpu_server.authz import Action, Actor, require, visibility
from remotegpu_server.db import tables
from remotegpu_server.events.convert import to_wire
from remotegpu_server.streams import BATCH, Frame, Position, settled_after


@dataclass(frozen=True)
class Filter:
    """Which events are wanted."""

    subject_type: str | None = None
    subject_id: str | None = None


async def read_page(
    db: AsyncSession, actor: Actor, wanted: Filter, *, after: Position, limit: int
) -> Page[Event]:
    """Events after a position, oldest first; ``next_cursor`` is where the next page starts."""
    require(actor, Action.EVENTS_READ)
    rows = await _read(db, actor, wanted, after=after, limit=limit)
    following = str(_position(rows[-1])) if len(rows) == limit else None
    return Page[Event](items=[to_wire(row) for row in rows], next_cursor=following)


def frames(wanted: Filter) -> Callable[[AsyncSession, Actor, Position], Awaitable[Sequence[Frame]]]:
    """What a stream of these events reads at each look."""

    async def read(db: AsyncSession, actor: Actor, after: Position) -> Sequence[Frame]:
        require(actor, Action.EVENTS_READ)
        rows = await _read(db, actor, wanted, after=after, limit=BATCH)
        return [Frame(_position(row), row.kind, to_wire(row).model_dump_json()) for row in rows]

    return read


def _position(row: tables.Event) -> Position:
    return Position(int(row.xid), row.id)


async def _read(
    db: AsyncSession, actor: Actor, wanted: Filter, *, after: Position, limit: int
) -> list[tables.Event]:
    event = tables.Event
    query: Select[tables.Event] = (
        select(event)
        .where(settled_after(event.xid, event.id, after))
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
