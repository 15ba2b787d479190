"""Rows of the outbox: written, claimed under a lease, and settled by whoever made the last attempt."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import and_, delete, func, insert, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import NOTIFICATION_GIVE_UP_S

Channel = Literal["mail", "webhook"]
LEASE_S = 120.0
"""Longer than any attempt takes: only a leader that died leaves one to run out."""
_FIRST_PAUSE_S = 30.0
_LONGEST_PAUSE_S = 600.0
_row = tables.OutboxMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something to deliver."""

    user_id: str
    kind: str
    payload: dict[str, Any]
    webhook_id: str | None = None


async def put(db: AsyncSession, channel: Channel, messages: Iterable[Message]) -> list[str]:
    """Write them in the caller's transaction; the loop of the channel is woken by its commit. Their ids."""
    values = [
        {
            "id": tables.new_id("out"),
            "channel": channel,
            "user_id": one.user_id,
            "webhook_id": one.webhook_id,
            "kind": one.kind,
            "payload": json.loads(json.dumps(one.payload)),
        }
        for one in messages
    ]
    if values:
        await db.execute(insert(_row), values)
        notify(db, hint(channel))
    return [str(one["id"]) for one in values]


def waiting(channel: Channel) -> Any:
    """What is due and leased to nobody."""
    return and_(
        _row.channel == channel,
        _row.delivered_at.is_(None),
        _row.dead_at.is_(None),
        _row.due_at <= func.now(),
        or_(_row.leased_until.is_(None), _row.leased_until < func.now()),
    )


def hint(channel: Channel) -> str:
    """What wakes the loop of a channel."""
    return f"outbox:{channel}"


async def claim(
    db: AsyncSession, channel: Channel, *, limit: int, among: Any = None
) -> list[tables.OutboxMessage]:
    """Lease what is due, the longest due first; only ``among`` these. The caller commits, then delivers."""
    due = (
        select(_row.id)
        .where(waiting(channel), true() if among is None else among)
        .order_by(_row.due_at, _row.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = await db.scalars(
        update(_row)
        .where(_row.id.in_(due))
        .values(
            leased_until=func.now() + timedelta(seconds=LEASE_S),
            attempts=_row.attempts + 1,
        )
        .returning(_row)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return sorted(claimed, key=lambda one: (one.due_at, one.id))


async def put_back(db: AsyncSession, message: tables.OutboxMessage) -> None:
    """It was claimed and not tried."""
    await _settle(db, message, attempts=message.attempts - 1)


async def delivered(db: AsyncSession, message: tables.OutboxMessage) -> None:
    """The receiver took it."""
    await _settle(db, message, delivered_at=func.now(), error=None)


async def failed(db: AsyncSession, message: tables.OutboxMessage, *, error: str, final: bool = False) -> bool:
    """Try again later, or give up: when it is ``final``, or too old. True when it is given up."""
    limit_s = await platform_settings.value(db, NOTIFICATION_GIVE_UP_S)
    age = await db.scalar(select(func.extract("epoch", func.now() - message.created_at)))
    if not final and float(age or 0) < limit_s:
        pause_s = min(_FIRST_PAUSE_S * 2 ** (min(message.attempts, 20) - 1), _LONGEST_PAUSE_S)
        await _settle(db, message, due_at=func.now() + timedelta(seconds=pause_s), error=error)
        return False
    if not await _settle(db, message, dead_at=func.now(), error=error):
        return False
    what = f"A {message.channel} about {message.kind}"
    await events.record(
        db,
        kind="outbox.dead",
        subject_type="outbox",
        subject_id=message.id,
        actor=SYSTEM,
        reason="refused" if final else "too_old",
        message=f"{what} was given up after {message.attempts} attempts: {error}",
        data={"channel": message.channel, "kind": message.kind, "attempts": message.attempts},
        user_id=message.user_id,
    )
    return True


async def drop(db: AsyncSession, channel: Channel) -> None:
    """Nobody delivers this channel: what waits is removed, so that it does not come out of date later."""
    await db.execute(
        delete(_row).where(_row.channel == channel, _row.delivered_at.is_(None), _row.dead_at.is_(None))
    )


async def _settle(db: AsyncSession, message: tables.OutboxMessage, **values: Any) -> bool:
    """False when somebody else claimed it meanwhile: what they write counts."""
    found = await db.scalar(
        update(_row)
        .where(_row.id == message.id, _row.attempts == message.attempts, _row.delivered_at.is_(None))
        .values(leased_until=None, **values)
        .returning(_row.id)
        .execution_options(synchronize_session=False)
    )
    return found is not None
