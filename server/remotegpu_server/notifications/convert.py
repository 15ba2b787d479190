"""Rows to wire."""

from __future__ import annotations

from remotegpu.types.notifications import (
    MailWhen,
    Notification,
    NotificationLevel,
    NotificationPreference,
)
from remotegpu_server.db import tables


def to_wire(row: tables.Notification) -> Notification:
    """A notification as answered to the person it is for."""
    return Notification(
        id=row.id,
        kind=row.kind,
        level=NotificationLevel(row.level),
        message=row.message,
        subject_type=row.subject_type,
        subject_id=row.subject_id,
        data=row.data,
        created_at=row.created_at,
        read_at=row.read_at,
    )


def preference_to_wire(row: tables.NotificationPreference) -> NotificationPreference:
    """How somebody wants to be told."""
    return NotificationPreference(kind=row.kind, in_app=row.in_app, mail=MailWhen(row.mail))
