"""What a person is told."""

from __future__ import annotations

from remotegpu.types.wire import UtcTime, Wire, WireEnum


class NotificationLevel(WireEnum):
    """How much it matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    UNKNOWN = "unknown"


class Notification(Wire):
    """One thing that a person is told."""

    id: str
    kind: str
    """``<noun>.<what>``, such as ``workspace.member_added``."""
    level: NotificationLevel
    message: str
    subject_type: str
    subject_id: str
    data: dict[str, object]
    created_at: UtcTime
    read_at: UtcTime | None


class NotificationCount(Wire):
    """How many wait to be read."""

    unread: int
