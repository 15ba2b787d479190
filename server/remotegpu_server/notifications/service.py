"""Telling people, and what they have been told."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify

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
    already is not told again: ``dedication:ded-1:7d``. Never a secret in ``message`` or ``data``.
    """
    told = sorted(set(user_ids))
    if not told:
        return
    row = tables.Notification
    await db.execute(
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
                }
                for user_id in told
            ]
        )
        .on_conflict_do_nothing()
    )
    notify(db, *(f"notifications:{user_id}" for user_id in told))
