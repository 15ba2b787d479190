"""Quotas: what a user, a workspace or a customer may hold, and asking for more."""

# ruff: noqa: RUF012  pydantic copies mutable defaults; ruff does not see that Wire is a model

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from remotegpu.types.wire import Name, Table, Text, UtcTime, Wire, WireEnum


class QuotaResource(WireEnum):
    """What is limited."""

    GPUS = "gpus"
    """GPUs held at once; a share of a GPU counts as that fraction."""
    GPU_HOURS = "gpu_hours"
    """Hours of GPUs held within the last ``window_s`` seconds."""
    CPUS = "cpus"
    """CPUs reserved at once."""
    MEMORY_BYTES = "memory_bytes"
    """Host memory reserved at once."""
    STORAGE_BYTES = "storage_bytes"
    """Volumes' size, where it is measured."""
    ENVIRONMENTS = "environments"
    """Environments that are not stopped."""
    TASKS = "tasks"
    """Tasks that have not ended."""
    UNKNOWN = "unknown"


class QuotaSubject(WireEnum):
    """Whom a limit binds."""

    USER = "user"
    WORKSPACE = "workspace"
    CUSTOMER = "customer"
    UNKNOWN = "unknown"


Limits = dict[QuotaResource, Annotated[int, Field(ge=0, le=2**62)] | None]
"""By resource: a number, 0 for none allowed, ``null`` for unlimited."""
Window = Annotated[int, Field(ge=3600, le=366 * 86400)]
"""Seconds over which GPU-hours are summed."""
Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class QuotaUpdate(Wire):
    """Own limits of a subject; they win over every policy. What is left out stays as it is."""

    limits: Limits = {}
    reset: list[QuotaResource] = []
    """Own limits to take away: the policy's count again, or none."""
    window_s: Window | None = None
    """Of ``gpu_hours``; left out: as before, or the platform's default."""


class QuotaLine(Wire):
    """One limit and how much of it is used, summed over rows at the time of the request."""

    subject: QuotaSubject
    subject_id: str
    subject_name: str
    resource: QuotaResource
    limit: int | None
    """``null``: unlimited."""
    used: float | None
    """``null``: not measured."""
    available: float | None
    """``null``: unlimited or not measured; never below 0."""
    window_s: int | None
    """Of ``gpu_hours``."""
    policy: str | None
    """The policy that the limit comes from; ``null``: set for this subject, or there is none."""
    raised_until: UtcTime | None
    """The limit is raised by an approved request, and lapses then."""


class Quota(Table):
    """All limits that bind a subject, its own and those above it."""

    ROWS: ClassVar[str] = "lines"

    lines: list[QuotaLine]


class QuotaOverrun(Wire):
    """A subject that holds more than a limit that was just set. Nothing of it is stopped by that."""

    subject: QuotaSubject
    subject_id: str
    subject_name: str
    resource: QuotaResource
    limit: int
    used: float
    over_by: float
    message: str
    """What it means, in one sentence."""


class QuotaChange(Table):
    """The limits after a change, and who is over them."""

    ROWS: ClassVar[str] = "lines"

    lines: list[QuotaLine]
    over: list[QuotaOverrun]


class QuotaCheck(Wire):
    """Amounts in theory."""

    amounts: dict[QuotaResource, Annotated[float, Field(ge=0, le=2**62)]]
    """What it would add: for one environment its sizes and ``environments: 1``. With ``gpus`` it also needs
    GPU-hours that are not used up."""
    workspace: Key | None = None
    """Id; left out: the personal one."""
    user: Key | None = None
    """Id or name, for admins and owners; left out: the caller."""


class QuotaVerdict(Wire):
    """Whether the limits allow a request, and if not, which one binds first."""

    allowed: bool
    message: str
    hint: str | None
    binding: QuotaLine | None
    retry_at: UtcTime | None
    """When enough of the GPU-hour window has passed."""
    quota: list[QuotaLine]


class PolicyTarget(Wire):
    """To whom a policy applies. Of all policies the most specific target wins: one customer's before
    everybody's, a group's before all."""

    subject: QuotaSubject
    customer: Key | None = None
    """Id or name; left out: of every customer."""
    group: Annotated[str, StringConstraints(pattern=r"^(admin|owner|member|personal|team)$")] | None = None
    """The role of users, or ``personal`` and ``team`` of workspaces; left out: all."""


class QuotaPolicyCreate(Wire):
    """A named set of limits for a group."""

    name: Name
    description: Text = ""
    limits: Limits = {}
    window_s: Window | None = None
    applies_to: Annotated[list[PolicyTarget], Field(max_length=100)] = []


class QuotaPolicyUpdate(Wire):
    """Fields left out stay; ``limits`` and ``applies_to`` are replaced as a whole."""

    description: Text | None = None
    limits: Limits | None = None
    window_s: Window | None = None
    applies_to: Annotated[list[PolicyTarget], Field(max_length=100)] | None = None


class QuotaPolicy(Wire):
    """A named set of limits, and whom it binds now."""

    id: str
    name: str
    description: str
    limits: Limits
    window_s: int | None
    applies_to: list[PolicyTarget]
    subjects: int
    """How many users, workspaces and customers have a limit of it now."""
    created_at: UtcTime


class QuotaRequestStatus(WireEnum):
    """Where a request for more stands."""

    OPEN = "open"
    APPROVED = "approved"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    LAPSED = "lapsed"
    """Was approved for a time that is over."""
    UNKNOWN = "unknown"


class QuotaRequestCreate(Wire):
    """Ask for a higher limit."""

    subject: QuotaSubject = QuotaSubject.USER
    subject_id: Key | None = None
    """Id or name; left out: the caller, the personal workspace, the own customer."""
    resource: QuotaResource
    amount: Annotated[int, Field(ge=1, le=2**62)]
    """The limit that is wanted, not the difference."""
    until: UtcTime | None = None
    why: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class QuotaRequestApprove(Wire):
    """Fields left out are as asked."""

    amount: Annotated[int, Field(ge=1, le=2**62)] | None = None
    until: UtcTime | None = None
    """After this the limit is what it was. Neither asked nor given: it stays."""
    note: Text = ""


class QuotaRequestRefuse(Wire):
    """Why not; the person who asked reads it."""

    note: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class QuotaRequest(Wire):
    """A request for more, and what became of it."""

    id: str
    subject: QuotaSubject
    subject_id: str
    subject_name: str
    resource: QuotaResource
    amount: int
    until: UtcTime | None
    why: str
    limit_before: int
    requested_by: str
    """User name."""
    status: QuotaRequestStatus
    granted_amount: int | None
    granted_until: UtcTime | None
    decided_by: str | None
    note: str
    created_at: UtcTime
    decided_at: UtcTime | None
