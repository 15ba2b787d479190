"""Which columns a person sees of each noun, and the HTML table of a notebook."""

from __future__ import annotations

import html as _html
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum

COLUMNS: dict[str, tuple[str, ...]] = {
    "Task": ("id", "name", "status", "progress", "image", "gpus", "exit_code", "owner", "message"),
    "TaskInput": ("sha256", "size_bytes", "received_bytes", "complete"),
    "Artifact": ("path", "size_bytes", "attempt", "sha256", "created_at", "id"),
    "TaskSchedule": (
        "id",
        "name",
        "cron",
        "time_zone",
        "enabled",
        "next_at",
        "last_at",
        "owner",
        "last_error",
    ),
    "TaskAttempt": ("number", "status", "host_name", "exit_code", "gpu_seconds", "started_at", "message"),
    "Environment": ("name", "status", "image", "gpus", "host_name", "owner", "message"),
    "Host": (
        "name",
        "operational",
        "connection",
        "health",
        "ready",
        "gpus_free",
        "gpus_total",
        "runtime",
        "not_ready_reason",
    ),
    "Dedication": ("id", "host_name", "customer_name", "status", "starts_at", "ends_at", "remark"),
    "Reservation": ("id", "name", "state", "gpus", "gpu_model", "starts_at", "ends_at", "gpus_in_use"),
    "CalendarEntry": ("starts_at", "ends_at", "gpus", "gpu_model", "name", "reservation_id"),
    "Gpu": (
        "host_name",
        "index",
        "model",
        "memory_total_bytes",
        "free",
        "health",
        "simulated",
        "holder",
        "uuid",
    ),
    "MetricPoint": ("at", "of", "metric", "gpu_uuid", "mean", "highest", "last", "simulated"),
    "Image": ("name", "reference", "status", "runtime", "display_name"),
    "ImageSave": ("id", "image_name", "status", "progress_bytes", "message", "created_at"),
    "User": ("username", "role", "status", "customer_name", "display_name"),
    "Workspace": ("id", "name", "kind", "status", "owner", "role", "members", "environments"),
    "WorkspaceMember": ("username", "role", "status", "display_name", "joined_at"),
    "Volume": ("id", "owner", "host_name", "size_bytes", "status", "in_use", "last_used_at", "measured_at"),
    "SshKey": ("name", "key_type", "fingerprint", "created_at"),
    "AuditRecord": ("at", "actor", "acted_for", "action", "outcome", "resource_id", "address"),
    "Notification": ("created_at", "level", "message", "read_at", "id"),
    "NotificationPreference": ("kind", "in_app", "mail"),
    "Alert": ("severity", "status", "rule", "object_name", "value", "unit", "since", "acknowledged_by", "id"),
    "AlertRule": ("name", "enabled", "severity", "signal", "operator", "threshold", "duration_s", "firing"),
    "AlertSignal": ("name", "object_type", "unit", "description"),
    "AlertSilence": ("id", "rule", "object", "until", "created_by", "reason"),
    "Webhook": ("id", "url", "events", "enabled", "failing_since", "description"),
    "WebhookDelivery": ("created_at", "event", "attempts", "delivered_at", "next_attempt_at", "error", "id"),
    "Customer": ("name", "status", "users", "environments", "gpus", "company", "code", "display_name"),
    "Token": ("id", "name", "kind", "scopes", "expires_at", "last_used_at"),
    "Event": ("at", "kind", "subject_type", "subject_id", "actor", "message"),
    "QuotaRequest": (
        "id",
        "requested_by",
        "subject",
        "subject_name",
        "resource",
        "amount",
        "until",
        "status",
        "why",
    ),
    "Setting": ("key", "value", "default", "type", "description"),
    "QuotaPolicy": ("name", "description", "subjects"),
    "QuotaLine": ("subject", "resource", "used", "limit", "available"),
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SECRETS = ("secret", "secret_env", "password", "one_time_password", "credential")
_HIDDEN = "(not shown)"
_LONGEST_FACT = 80
"""Characters of one value in a repr."""


def columns(kind: str) -> tuple[str, ...]:
    """The fields that stand in a table of this wire type."""
    return COLUMNS[kind]


class _Bare(str):
    """Text that stands in a repr without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def facts(item: object) -> list[tuple[str | None, object]]:
    """What the repr of an item shows: its columns, or its first fields where it has none."""
    kind = type(item).__name__
    fields = COLUMNS.get(kind) or tuple(_fields(item))
    return [(name, _fact(name, value)) for name in fields if (value := getattr(item, name, None)) is not None]


def _fact(name: str, value: object) -> object:
    if name in _SECRETS:
        return _Bare(_HIDDEN)
    if isinstance(value, datetime):
        return _Bare(cell(name, value))
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_FACT else value[: _LONGEST_FACT - 1] + "…"
    if isinstance(value, list):
        return _Bare(_listed(value))
    return value


def _listed(values: list[object]) -> str:
    if values and _fields(values[0]):
        return f"<{len(values)} x {type(values[0]).__name__}>"
    text = ", ".join(cell("", value) for value in values)
    return f"[{text}]" if len(text) <= _LONGEST_FACT else f"<{len(values)} values>"


def _fields(item: object) -> dict[str, object]:
    return getattr(type(item), "model_fields", {})


def cell(field: str, value: object) -> str:
    """A value as a person reads it."""
    if value is None:
        return "unlimited" if field in {"limit", "available"} else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if field.endswith("_bytes") and isinstance(value, int | float):
        return size(value)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "-"
    return printable(str(value))


def size(value: float) -> str:
    """Bytes in the unit that fits."""
    for unit in _UNITS[:-1]:
        if abs(value) < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} {_UNITS[-1]}"


def printable(text: str) -> str:
    """One line without control characters: what others wrote must not drive this terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def row(kind: str, item: object) -> list[str]:
    """The cells of one item, in the order of :func:`columns`."""
    return [cell(field, getattr(item, field, None)) for field in columns(kind)]


def heading(field: str) -> str:
    """A column's title."""
    return field.removesuffix("_bytes").replace("_", " ")


def card(item: object) -> str:
    """One item for a notebook: a row for each field. Everything in it is escaped."""
    values = {name: getattr(item, name) for name in _fields(item)}
    if len(values) == 1:
        return "".join(_card_value(name, value) for name, value in values.items())
    rows = "".join(
        f"<tr><th>{_html.escape(heading(name))}</th><td>{shown}</td></tr>"
        for name, value in values.items()
        if (shown := _card_value(name, value)) not in {"", "-"}
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _card_value(name: str, value: object) -> str:
    if name in _SECRETS and value:
        return _html.escape(f"{_HIDDEN}; it is in .{name}")
    if _fields(value):
        return card(value)
    if isinstance(value, list) and value and _fields(value[0]):
        kind = type(value[0]).__name__
        return _html_table(COLUMNS.get(kind) or tuple(_fields(value[0])), value)
    if isinstance(value, str) and "\n" in value:
        return f"<pre>{_html.escape(value)}</pre>"
    return _html.escape(cell(name, value))


def html(kind: str, items: Iterable[object], *, more: bool) -> str:
    """A table for a notebook. Everything in it is escaped."""
    note = "<p>More follow; iterate over the list to get all.</p>" if more else ""
    return _html_table(columns(kind), items) + note


def _html_table(fields: Sequence[str], items: Iterable[object]) -> str:
    head = "".join(f"<th>{_html.escape(heading(field))}</th>" for field in fields)
    body = "".join(_html_row([cell(field, getattr(item, field, None)) for field in fields]) for item in items)
    none = f'<tr><td colspan="{len(fields)}">none</td></tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body or none}</tbody></table>"


def _html_row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{_html.escape(text)}</td>" for text in cells) + "</tr>"
