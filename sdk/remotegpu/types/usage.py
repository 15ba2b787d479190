"""Usage statistics: who held how many GPU-hours, when, and how long people waited for them."""

from __future__ import annotations

from datetime import date
from typing import ClassVar

from remotegpu.types.wire import Table, UtcTime, Wire, WireEnum


class UsageGroup(WireEnum):
    """By what usage is broken down."""

    DAY = "day"
    CUSTOMER = "customer"
    WORKSPACE = "workspace"
    USER = "user"
    GPU_MODEL = "gpu_model"
    UNKNOWN = "unknown"


class UsageRecord(Wire):
    """One group. Fields by which it is not broken down are ``null``; simulated GPUs have their own rows."""

    day: date | None
    """In UTC. A span over midnight is split."""
    customer_id: str | None
    customer: str | None
    workspace_id: str | None
    workspace: str | None
    user_id: str | None
    user: str | None
    gpu_model: str | None
    simulated: bool
    gpu_hours: float
    """A share of a GPU counts as its fraction."""
    allocations: int
    """GPUs or shares that were given out, counted where they began."""
    starts: int
    """Starts that they were given to, counted where they began."""
    wait_mean_s: float | None
    """From the request to the placement of these starts; ``null``: not known."""
    wait_max_s: float | None


class UsageReport(Table):
    """Usage within a time, by the groups that were asked for."""

    ROWS: ClassVar[str] = "records"

    begin_at: UtcTime
    end_at: UtcTime
    group_by: list[UsageGroup]
    records: list[UsageRecord]
