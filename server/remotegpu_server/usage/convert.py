"""Rows to wire types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remotegpu.types.usage import UsageRecord


def to_wire(row: Mapping[str, Any]) -> UsageRecord:
    """A record; fields by which it was not grouped are null."""
    values: dict[str, Any] = dict.fromkeys(UsageRecord.model_fields) | dict(row)
    for name in ("gpu_hours", "wait_mean_s", "wait_max_s"):
        values[name] = None if values[name] is None else round(float(values[name]), 6)
    return UsageRecord(**values)
