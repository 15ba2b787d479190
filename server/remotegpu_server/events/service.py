"""Recording and reading what happened."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import subscribers

STREAM_KEY = "events"
"""Hint that new events were committed."""


async def record(
    db: AsyncSession,
    *,
    kind: str,
    subject_type: str,
    subject_id: str,
    actor: Actor,
    message: str,
    reason: str | None = None,
    data: dict[str, Any] | None = None,
    customer_id: str | None = None,
    user_id: str | None = None,
    workspace_id: str | None = None,
) -> None:
    """Write one event in the caller's transaction. ``customer_id``, ``user_id`` and ``workspace_id`` say who
    may see it besides admins; ``data`` never holds a secret.
    """
    await db.execute(
        insert(tables.Event).values(
            kind=kind,
            subject_type=subject_type,
            subject_id=subject_id,
            actor=actor.name,
            customer_id=customer_id,
            user_id=user_id,
            workspace_id=workspace_id,
            reason=reason,
            message=message,
            data=json.loads(json.dumps(data or {})),
        )
    )
    await subscribers.fan_out(
        db,
        event=subscribers.Happened(kind, subject_type, subject_id, actor.name, reason, message, data or {}),
        seen_by=subscribers.SeenBy(customer_id, user_id, workspace_id),
    )
    audit.made(db, subject_id)
    notify(db, STREAM_KEY, f"{subject_type}:{subject_id}")
