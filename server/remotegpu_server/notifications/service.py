"""Telling people, and what they have been told."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.notifications import preferences
from remotegpu_server.outbox import service as outbox

Level = Literal["info", "warning", "error"]


async def tell(
    db: AsyncSession,
    *,
    user_ids: Iterable[str],
    kind: str,
    level: Level,
    message: str,
    subject_type: str,
    subject_id: str,
    data: dict[str, Any] | None = None,
    dedupe_key: str | None = None,
) -> None:
    """Tell each user once, in the caller's transaction.

    ``kind`` is ``<noun>.<what>`` (``host.draining``). With a ``dedupe_key`` a user who was told under it
    already is not told again: ``dedication:ded-1:7d``. Never a secret in ``message`` or ``data``. How each
    user is told is theirs to say (``preferences``).
    """
    told = sorted(set(user_ids))
    if not told:
        return
    ways = await preferences.ways(db, user_ids=told, kind=kind, level=level)
    row = tables.Notification
    new = set(
        await db.scalars(
            insert(row)
            .values(
                [
                    {
                        "id": tables.new_id("ntf"),
                        "user_id": user_id,
                        "kind": kind,
                        "level": level,
                        "message": message,
                        "subject_type": subject_type,
                        "subject_id": subject_id,
                        "data": json.loads(json.dumps(data or {})),
                        "dedupe_key": dedupe_key,
                        "in_app": ways[user_id].in_app,
                        "digest": ways[user_id].mail == "digest",
                    }
                    for user_id in told
                ]
            )
            .on_conflict_do_nothing()
            .returning(row.user_id)
        )
    )
    mail = {"subject": message, "text": f"{message}\n"}
    await outbox.put(
        db,
        "mail",
        [
            outbox.Message(user_id=user_id, kind=kind, payload=mail)
            for user_id in told
            if user_id in new and ways[user_id].mail == "now"
        ],
    )
    notify(db, *(stream_key(user_id) for user_id in told))


def stream_key(user_id: str) -> str:
    """Hint that somebody was told something."""
    return f"notifications:{user_id}"
