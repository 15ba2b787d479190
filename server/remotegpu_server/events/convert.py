"""Rows to wire."""

from __future__ import annotations

from remotegpu.types.events import Event
from remotegpu_server.db import tables


def to_wire(row: tables.Event) -> Event:
    """An event as answered; its id is its position."""
    return Event(
        id=f"{row.xid}.{row.id}",
        at=row.at,
        kind=row.kind,
        subject_type=row.subject_type,
        subject_id=row.subject_id,
        actor=row.actor,
        reason=row.reason,
        message=row.message,
        data=row.data,
    )
