"""Webhooks that want to hear of an event, in the transaction that records it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, any_, exists, false, insert, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.webhooks import WebhookEvent
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify

HINT = "outbox:webhook"


@dataclass(frozen=True, slots=True)
class Happened:
    """An event as it is recorded."""

    kind: str
    subject_type: str
    subject_id: str
    actor: str
    reason: str | None
    message: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SeenBy:
    """Who may see it besides admins."""

    customer_id: str | None
    user_id: str | None
    workspace_id: str | None


_SAME = {
    "environment.created": WebhookEvent.ENVIRONMENT_CREATED,
    "alert.triggered": WebhookEvent.ALERT_TRIGGERED,
    "alert.resolved": WebhookEvent.ALERT_RESOLVED,
    "quota.gpu_hours_used_up": WebhookEvent.QUOTA_EXCEEDED,
    "quota.storage_exceeded": WebhookEvent.QUOTA_EXCEEDED,
}
_MOVES = {
    ("environment.status", "running"): WebhookEvent.ENVIRONMENT_STARTED,
    ("environment.status", "stopped"): WebhookEvent.ENVIRONMENT_STOPPED,
    ("task.status", "succeeded"): WebhookEvent.JOB_COMPLETED,
    ("task.status", "failed"): WebhookEvent.JOB_FAILED,
    ("task.status", "timed_out"): WebhookEvent.JOB_FAILED,
}


def told_as(event: Happened) -> WebhookEvent | None:
    """What webhooks call it; most events are none of theirs."""
    return _SAME.get(event.kind) or _MOVES.get((event.kind, str(event.data.get("to"))))


async def fan_out(db: AsyncSession, *, event: Happened, seen_by: SeenBy) -> None:
    """One row of the outbox for each webhook that wants it and whose owner may see it."""
    name = told_as(event)
    if name is None:
        return
    row, user, customer = tables.Webhook, tables.User, tables.Customer
    wanted = await db.execute(
        select(row.id, row.owner_id)
        .join(user, user.id == row.owner_id)
        .join(customer, customer.id == user.customer_id)
        .where(
            row.enabled,
            literal(str(name)) == any_(row.events),
            user.status == "active",
            customer.status == "active",
            _sees(seen_by),
        )
    )
    body = {
        "type": str(name),
        "timestamp": datetime.now(UTC).isoformat(),
        "data": {
            "subject_type": event.subject_type,
            "subject_id": event.subject_id,
            "actor": event.actor,
            "reason": event.reason,
            "message": event.message,
            "facts": event.data,
        },
    }
    values = [
        {
            "id": tables.new_id("out"),
            "channel": "webhook",
            "user_id": owner_id,
            "webhook_id": webhook_id,
            "kind": str(name),
            "payload": json.loads(json.dumps(body)),
        }
        for webhook_id, owner_id in wanted
    ]
    if values:
        await db.execute(insert(tables.OutboxMessage), values)
        notify(db, HINT)


def _sees(seen_by: SeenBy) -> ColumnElement[bool]:
    """The same people who see the event in ``GET /v1/events``."""
    user, member = tables.User, tables.WorkspaceMember
    own = (user.id == seen_by.user_id) if seen_by.workspace_id is None and seen_by.user_id else false()
    owns = (
        (user.role == "owner") & (user.customer_id == seen_by.customer_id) if seen_by.customer_id else false()
    )
    joined = (
        exists().where(
            member.workspace_id == seen_by.workspace_id, member.user_id == user.id, member.status == "active"
        )
        if seen_by.workspace_id
        else false()
    )
    return or_(user.role == "admin", own, owns, joined)
