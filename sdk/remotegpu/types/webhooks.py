"""Webhooks: programs that are told what happens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from remotegpu.types.wire import Text, UtcTime, Wire, WireEnum

WebhookUrl = Annotated[
    str, StringConstraints(min_length=8, max_length=2048, pattern=r"^https?://[^\x00-\x20\x7f]+$")
]


class WebhookEvent(WireEnum):
    """What a webhook can be told. A job is a task."""

    ENVIRONMENT_CREATED = "environment.created"
    ENVIRONMENT_STARTED = "environment.started"
    ENVIRONMENT_STOPPED = "environment.stopped"
    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    ALERT_TRIGGERED = "alert.triggered"
    ALERT_RESOLVED = "alert.resolved"
    QUOTA_EXCEEDED = "quota.exceeded"
    UNKNOWN = "unknown"


class WebhookCreate(Wire):
    """Where to send what."""

    url: WebhookUrl
    """``https://``; a private network only where an admin has allowed it."""
    events: Annotated[list[WebhookEvent], Field(min_length=1, max_length=20)]
    description: Text = ""


class WebhookUpdate(Wire):
    """What is left out stays."""

    url: WebhookUrl | None = None
    events: Annotated[list[WebhookEvent], Field(min_length=1, max_length=20)] | None = None
    description: Text | None = None
    enabled: bool | None = None
    """Also switches one on again that was given up."""


class Webhook(Wire):
    """A webhook; its secret is shown once, when it is made."""

    id: str
    owner_id: str
    url: str
    events: list[WebhookEvent]
    description: str
    enabled: bool
    failing_since: UtcTime | None
    """Since when nothing is taken; it is switched off when that lasts."""
    created_at: UtcTime


class WebhookCreated(Wire):
    """A webhook with its secret."""

    webhook: Webhook
    secret: str
    """``whsec_…``; signs every delivery as Standard Webhooks say. It is not shown again."""


class WebhookDelivery(Wire):
    """One delivery, as the log shows it."""

    id: str
    """The ``webhook-id`` of every attempt."""
    event: str
    created_at: UtcTime
    attempts: int
    next_attempt_at: UtcTime | None
    """``null``: delivered or given up."""
    delivered_at: UtcTime | None
    given_up_at: UtcTime | None
    error: str | None
    """Why the last attempt failed."""
