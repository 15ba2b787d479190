"""What people read of what they were told. Nobody reads anybody else's."""

from __future__ import annotations

from sqlalchemy import func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound
from remotegpu.types.notifications import Notification, NotificationCount
from remotegpu.types.wire import Page
from remotegpu_server import pagination
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.db import tables
from remotegpu_server.notifications.convert import to_wire
from remotegpu_server.streams import BATCH, Frame, Position, settled_after

_row = tables.Notification


async def list_notifications(
    db: AsyncSession, *, actor: Actor, unread: bool, limit: int, cursor: str | None
) -> Page[Notification]:
    """The caller's own, newest first."""
    require(actor, Action.NOTIFICATION_READ)
    query = select(_row).where(_row.user_id == actor.user_id, _row.in_app)
    if unread:
        query = query.where(_row.read_at.is_(None))
    if cursor is not None:
        query = query.where(pagination.before((_row.created_at, _row.id), cursor))
    rows = list(await db.scalars(query.order_by(_row.created_at.desc(), _row.id.desc()).limit(limit + 1)))
    last = rows[limit - 1] if len(rows) > limit else None
    return Page[Notification](
        items=[to_wire(one) for one in rows[:limit]],
        next_cursor=pagination.encode([last.created_at, last.id]) if last else None,
    )


async def frames(db: AsyncSession, actor: Actor, after: Position) -> list[Frame]:
    """What the stream of the caller's notifications reads at each look."""
    require(actor, Action.NOTIFICATION_READ)
    rows = await db.scalars(
        select(_row)
        .where(_row.user_id == actor.user_id, _row.in_app, settled_after(_row.xid, _row.position, after))
        .order_by(literal_column("notifications.xid"), _row.position)
        .limit(BATCH)
    )
    return [
        Frame(Position(int(row.xid), row.position), row.kind, to_wire(row).model_dump_json()) for row in rows
    ]


async def count_unread(db: AsyncSession, *, actor: Actor) -> NotificationCount:
    """How many the caller has not read."""
    require(actor, Action.NOTIFICATION_READ)
    found = await db.scalar(
        select(func.count()).where(_row.user_id == actor.user_id, _row.in_app, _row.read_at.is_(None))
    )
    return NotificationCount(unread=found or 0)


async def read_one(db: AsyncSession, *, actor: Actor, notification_id: str) -> Notification:
    """Mark one as read; the first time counts. Somebody else's does not exist."""
    require(actor, Action.NOTIFICATION_WRITE)
    found = await db.scalar(
        update(_row)
        .where(_row.id == notification_id, _row.user_id == actor.user_id, _row.in_app)
        .values(read_at=func.coalesce(_row.read_at, func.now()))
        .returning(_row)
        .execution_options(synchronize_session=False)
    )
    if found is None:
        raise NotFound("There is no such notification.")
    return to_wire(found)


async def read_all(db: AsyncSession, *, actor: Actor) -> NotificationCount:
    """Mark everything as read that is there now."""
    require(actor, Action.NOTIFICATION_WRITE)
    await db.execute(
        update(_row)
        .where(_row.user_id == actor.user_id, _row.in_app, _row.read_at.is_(None))
        .values(read_at=func.now())
        .execution_options(synchronize_session=False)
    )
    return await count_unread(db, actor=actor)
