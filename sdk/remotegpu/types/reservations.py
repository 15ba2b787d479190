"""Reservations: GPUs promised for a period."""

# ruff: noqa: RUF012  pydantic copies mutable defaults; ruff does not see that Wire is a model

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from remotegpu.types.wire import Labels, Text, UtcTime, Wire, WireEnum

Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class ReservationState(WireEnum):
    """Where a reservation is in its life."""

    SCHEDULED = "scheduled"
    ACTIVE = "active"
    ENDED = "ended"
    UNUSED = "unused"
    """Nobody came within the grace, so it was given back."""
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class ReservationCreate(Wire):
    """GPUs for a workspace, or for a whole customer, over a period."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    gpus: Annotated[int, Field(ge=1, le=4096)]
    gpu_model: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Left out: any model."""
    host_labels: Labels = {}
    """Only on hosts that carry all of these labels with these values."""
    starts_at: UtcTime
    ends_at: UtcTime
    workspace: Key | None = None
    """Id of the workspace it is for; left out: the personal one."""
    customer: Key | None = None
    """Id of the customer all of whose workspaces it is for, instead of one; for its owners and admins."""


class Reservation(Wire):
    """GPUs promised for a period. What starts in it ends with it."""

    id: str
    name: str
    customer_id: str
    workspace_id: str | None
    """``null``: for every workspace of the customer."""
    gpus: int
    gpu_model: str | None
    host_labels: Labels
    starts_at: UtcTime
    ends_at: UtcTime
    state: ReservationState
    gpus_in_use: int
    created_by: str
    """User name."""
    created_at: UtcTime
    used_at: UtcTime | None
    """When the first environment started in it."""
    ended_at: UtcTime | None


class CalendarEntry(Wire):
    """A promise in the calendar. Others' are shown without who they are for."""

    starts_at: UtcTime
    ends_at: UtcTime
    gpus: int
    gpu_model: str | None
    reservation_id: str | None
    """``null``: somebody else's."""
    name: Text | None


class ModelTotal(Wire):
    """How many GPUs of a model there are to promise."""

    gpu_model: str
    total: int


class Calendar(Wire):
    """What is promised in a period, and of how much."""

    from_at: UtcTime
    until_at: UtcTime
    entries: list[CalendarEntry]
    """By their start."""
    models: list[ModelTotal]
