"""Which columns a person sees of each noun, and the HTML table of a notebook."""

from __future__ import annotations

import html as _html
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum

COLUMNS: dict[str, tuple[str, ...]] = {
    "Environment": ("name", "status", "image", "gpus", "host_name", "owner", "message"),
    "Host": (
        "name",
        "connection",
        "ready",
        "cordoned",
        "gpus_free",
        "gpus_total",
        "runtime",
        "not_ready_reason",
    ),
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
    "Image": ("name", "reference", "status", "runtime", "display_name"),
    "User": ("username", "role", "status", "customer_name", "display_name"),
    "Workspace": ("id", "name", "kind", "status", "owner", "role", "members", "environments"),
    "WorkspaceMember": ("username", "role", "status", "display_name", "joined_at"),
    "Customer": ("name", "status", "display_name"),
    "Token": ("name", "kind", "scopes", "expires_at", "last_used_at"),
    "Event": ("at", "kind", "subject_type", "subject_id", "actor", "message"),
    "QuotaLine": ("subject", "resource", "used", "limit", "available"),
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def columns(kind: str) -> tuple[str, ...]:
    """The fields that stand in a table of this wire type."""
    return COLUMNS[kind]


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


def html(kind: str, items: Iterable[object], *, more: bool) -> str:
    """A table for a notebook. Everything in it is escaped."""
    rows = [row(kind, item) for item in items]
    head = "".join(f"<th>{_html.escape(heading(field))}</th>" for field in columns(kind))
    body = (
        "".join(_html_row(cells) for cells in rows)
        or f'<tr><td colspan="{len(columns(kind))}">none</td></tr>'
    )
    note = "<p>More follow; iterate over the list to get all.</p>" if more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _html_row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{_html.escape(text)}</td>" for text in cells) + "</tr>"
