"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.webhooks import Webhook, WebhookDelivery, WebhookEvent
from remotegpu_server.db import tables


def to_wire(row: tables.Webhook) -> Webhook:
    """A webhook without its secret."""
    return Webhook(
        id=row.id,
        owner_id=row.owner_id,
        url=row.url,
        events=[WebhookEvent(one) for one in row.events],
        description=row.description,
        enabled=row.enabled,
        failing_since=row.failing_since,
        created_at=row.created_at,
    )


def delivery_to_wire(row: tables.OutboxMessage) -> WebhookDelivery:
    """One line of the log of deliveries."""
    ended = row.delivered_at is not None or row.dead_at is not None
    return WebhookDelivery(
        id=row.id,
        event=row.kind,
        created_at=row.created_at,
        attempts=row.attempts,
        next_attempt_at=None if ended else row.due_at,
        delivered_at=row.delivered_at,
        given_up_at=row.dead_at,
        error=row.error,
    )
