"""What a person is told, and how."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from remotegpu.types.wire import UtcTime, Wire, WireEnum

NotificationKind = Annotated[
    str, StringConstraints(pattern=r"^(\*|[a-z_]{1,40}(\.[a-z0-9_]{1,40})?)$", max_length=81)
]
"""A kind (``environment.stops_soon``), a noun (``environment``) or everything (``*``)."""


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


class MailWhen(WireEnum):
    """When something is mailed."""

    NOW = "now"
    DIGEST = "digest"
    """Together with other things, after a while, unless it was read meanwhile."""
    OFF = "off"
    UNKNOWN = "unknown"


class NotificationPreferenceUpdate(Wire):
    """How to be told."""

    in_app: bool = True
    """In the inbox, the notebook and the stream."""
    mail: MailWhen = MailWhen.DIGEST


class NotificationPreference(Wire):
    """How the caller is told of a kind; the closest one counts: kind, noun, everything."""

    kind: str
    in_app: bool
    mail: MailWhen


class NotificationPreferences(Wire):
    """What the caller has set; of what is not here errors are mailed at once and warnings in a digest."""

    preferences: list[NotificationPreference]
