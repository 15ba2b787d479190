"""Quotas: what a subject may hold at once."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from remotegpu.types.wire import Table, Wire, WireEnum


class QuotaResource(WireEnum):
    """What is limited."""

    GPUS = "gpus"
    """GPUs held at once."""
    ENVIRONMENTS = "environments"
    """Environments that are not stopped."""
    CPUS = "cpus"
    """CPUs reserved at once."""
    MEMORY_BYTES = "memory_bytes"
    """Host memory reserved at once."""
    UNKNOWN = "unknown"


class QuotaSubject(WireEnum):
    """Whom a limit binds."""

    USER = "user"
    CUSTOMER = "customer"
    UNKNOWN = "unknown"


class QuotaUpdate(Wire):
    """Limits by resource: a number, 0 for none allowed, ``null`` for unlimited. Left out: unchanged."""

    limits: dict[QuotaResource, Annotated[int, Field(ge=0, le=2**62)] | None]


class QuotaLine(Wire):
    """One limit and how much of it is used, summed over live rows at the time of the request."""

    subject: QuotaSubject
    subject_id: str
    resource: QuotaResource
    limit: int | None
    """``null``: unlimited."""
    used: float
    available: float | None
    """``null``: unlimited; never below 0."""


class Quota(Table):
    """All limits that bind a subject, its own and those above it."""

    ROWS: ClassVar[str] = "lines"

    lines: list[QuotaLine]
