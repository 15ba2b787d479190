"""Numbers and times as people read them. Nothing measured is a dash, never 0."""

from __future__ import annotations

from datetime import UTC, datetime

NOTHING = "–"  # noqa: RUF001
_GIB = 2**30
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def gib(value: float | None) -> str:
    """Bytes in GiB."""
    return NOTHING if value is None else f"{value / _GIB:.1f} GiB".replace(".0 GiB", " GiB")


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f} %"


def ago(at: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in the largest unit that fits."""
    if at is None:
        return NOTHING
    seconds = max(0, int(((now or datetime.now(UTC)) - at).total_seconds()))
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds // unit} {name} ago"
    return f"{seconds} s ago"
