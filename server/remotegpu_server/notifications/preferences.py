"""How people want to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Conflict, NotFound
from remotegpu.types.notifications import (
    NotificationPreference,
    NotificationPreferences,
    NotificationPreferenceUpdate,
)
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.db import tables
from remotegpu_server.notifications.convert import preference_to_wire
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import NOTIFICATION_MAIL_BURST

BURST_SPAN = timedelta(minutes=10)
MOST = 200
"""Preferences of one person."""
_BY_LEVEL = {"info": "off", "warning": "digest", "error": "now"}
_row = tables.NotificationPreference


@dataclass(frozen=True, slots=True)
class Way:
    """How one person is told of one thing."""

    in_app: bool
    mail: str
    """``now``, ``digest`` or ``off``."""


async def ways(db: AsyncSession, *, user_ids: Sequence[str], kind: str, level: str) -> dict[str, Way]:
    """By user: their closest preference, bounded by what can reach them and by what they got just now."""
    by_closeness = ["*", kind.partition(".")[0], kind]
    chosen: dict[str, tables.NotificationPreference] = {}
    found = await db.scalars(select(_row).where(_row.user_id.in_(user_ids), _row.kind.in_(by_closeness)))
    for one in sorted(found, key=lambda one: by_closeness.index(one.kind)):
        chosen[one.user_id] = one
    mailed = await _mailed_recently(db, user_ids=user_ids)
    burst = await platform_settings.value(db, NOTIFICATION_MAIL_BURST) if any(mailed.values()) else 1
    result = {}
    for user_id in user_ids:
        preference = chosen.get(user_id)
        mail = _BY_LEVEL[level] if preference is None else preference.mail
        if user_id not in mailed:
            mail = "off"
        elif mail == "now" and mailed[user_id] >= burst:
            mail = "digest"
        result[user_id] = Way(True if preference is None else preference.in_app, mail)
    return result


async def _mailed_recently(db: AsyncSession, *, user_ids: Sequence[str]) -> dict[str, int]:
    """By user whom mail reaches: how many mails were written in the last minutes."""
    user, sent = tables.User, tables.OutboxMessage
    count = (
        select(func.count())
        .where(sent.user_id == user.id, sent.channel == "mail", sent.created_at > func.now() - BURST_SPAN)
        .scalar_subquery()
    )
    rows = await db.execute(
        select(user.id, count).where(user.id.in_(user_ids), user.email.is_not(None), user.status == "active")
    )
    return {row[0]: row[1] for row in rows}


async def list_preferences(db: AsyncSession, *, actor: Actor) -> NotificationPreferences:
    """The caller's own, by kind."""
    require(actor, Action.NOTIFICATION_READ)
    rows = await db.scalars(select(_row).where(_row.user_id == actor.user_id).order_by(_row.kind))
    return NotificationPreferences(preferences=[preference_to_wire(row) for row in rows])


async def put_preference(
    db: AsyncSession, *, actor: Actor, kind: str, body: NotificationPreferenceUpdate
) -> NotificationPreference:
    """Set one; what was told before stays as it is."""
    require(actor, Action.NOTIFICATION_WRITE)
    count = await db.scalar(select(func.count()).where(_row.user_id == actor.user_id, _row.kind != kind))
    if (count or 0) >= MOST:
        raise Conflict(f"You have {MOST} preferences already.", hint="Remove some, or set a whole noun.")
    given = {"in_app": body.in_app, "mail": str(body.mail)}
    saved = await db.scalar(
        insert(_row)
        .values(user_id=actor.user_id, kind=kind, **given)
        .on_conflict_do_update(index_elements=[_row.user_id, _row.kind], set_=given)
        .returning(_row)
        .execution_options(populate_existing=True)
    )
    assert saved is not None
    return preference_to_wire(saved)


async def delete_preference(db: AsyncSession, *, actor: Actor, kind: str) -> None:
    """What is set for more counts again."""
    require(actor, Action.NOTIFICATION_WRITE)
    removed = await db.scalar(
        delete(_row).where(_row.user_id == actor.user_id, _row.kind == kind).returning(_row.kind)
    )
    if removed is None:
        raise NotFound("There is no such preference.")
