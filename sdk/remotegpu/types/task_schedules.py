"""Schedules: the same task submitted again and again, at the times of a cron expression."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from remotegpu.types.tasks import TaskSpec
from remotegpu.types.wire import Name, UtcTime, Wire, WireEnum

Cron = Annotated[str, StringConstraints(min_length=9, max_length=256)]
"""Minute, hour, day of the month, month, day of the week: ``30 2 * * mon-fri``."""
TimeZone = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Overlap(WireEnum):
    """What happens at a time at which an earlier task of the schedule has not ended."""

    SKIP = "skip"
    """Nothing is submitted."""
    ALLOW = "allow"
    """Another one is submitted."""
    UNKNOWN = "unknown"


class TaskScheduleCreate(Wire):
    """When to submit what."""

    name: Name
    """Of its owner's schedules, unique."""
    cron: Cron
    time_zone: TimeZone = "UTC"
    """IANA name, such as ``Europe/Berlin``. A time that a change of the clock leaves out comes an hour later,
    one that it repeats counts once; an hour field that begins with ``*`` follows the elapsed time instead."""
    overlap: Overlap = Overlap.SKIP
    enabled: bool = True
    task: TaskSpec


class TaskScheduleUpdate(Wire):
    """What is left out stays."""

    cron: Cron | None = None
    time_zone: TimeZone | None = None
    overlap: Overlap | None = None
    enabled: bool | None = None
    task: TaskSpec | None = None
    """Its owner's to change: it runs as the owner."""


class TaskSchedule(Wire):
    """A schedule, and when it comes next."""

    id: str
    name: str
    owner: str
    owner_id: str
    customer_id: str
    workspace_id: str
    cron: str
    time_zone: str
    overlap: Overlap
    enabled: bool
    task: TaskSpec
    next_at: UtcTime | None
    """``null`` while it is not enabled."""
    last_at: UtcTime | None
    """When it last submitted, or tried to."""
    last_error: str | None
    """Why the last time failed; ``null`` when it did not."""
    created_at: UtcTime
