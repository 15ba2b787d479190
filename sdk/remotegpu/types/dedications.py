"""Whole hosts lent to a customer or a workspace for a period."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from remotegpu.types.wire import Text, UtcTime, Wire, WireEnum

Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class DedicationStatus(WireEnum):
    """Legal moves: ``docs/dedications.md``."""

    SCHEDULED = "scheduled"
    ACTIVE = "active"
    GRACE = "grace"
    """The period is over; what runs goes on until the clean-up begins."""
    CLEANING = "cleaning"
    ENDED = "ended"
    """Cleaned: nothing of the tenant is left on the host's own disk."""
    CANCELLED = "cancelled"
    """Ended before it began."""
    UNKNOWN = "unknown"


class StepStatus(WireEnum):
    """How far a step of the clean-up is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """Gave up after its time; ``:reclaim`` begins it anew."""
    UNKNOWN = "unknown"


class DedicationCreate(Wire):
    """Lend a host."""

    host: Key
    """Id or name."""
    customer: Key
    """Id or name."""
    workspace: Key | None = None
    """Id of one of the customer's workspaces; left out: for the whole customer."""
    starts_at: UtcTime | None = None
    """Left out: now."""
    ends_at: UtcTime
    remark: Text = ""


class DedicationExtend(Wire):
    """Another end."""

    ends_at: UtcTime


class DedicationEnd(Wire):
    """End it early; the grace begins."""

    reason: Text = ""


class DedicationReclaim(Wire):
    """Begin the clean-up now."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    force: bool = False
    """True: also while work of the tenant runs, which is stopped."""


class DedicationStep(Wire):
    """One step of the clean-up."""

    name: str
    status: StepStatus
    detail: str
    attempts: Annotated[int, Field(ge=0)]
    started_at: UtcTime | None
    finished_at: UtcTime | None


class Dedication(Wire):
    """A host that works for one tenant between two moments."""

    id: str
    host_id: str
    host_name: str
    customer_id: str
    customer_name: str
    workspace_id: str | None
    status: DedicationStatus
    starts_at: UtcTime
    ends_at: UtcTime
    remark: str
    end_reason: str | None
    created_by: str
    created_at: UtcTime
    cleaned_at: UtcTime | None
    steps: list[DedicationStep]
    """Of the clean-up, in their order; none before it begins."""
