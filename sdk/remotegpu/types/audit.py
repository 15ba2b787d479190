"""The audit trail: who did what."""

from __future__ import annotations

from remotegpu.types.wire import UtcTime, Wire, WireEnum


class AuditOutcome(WireEnum):
    """What became of it."""

    DONE = "done"
    REFUSED = "refused"
    """The caller may not, or asked for something that cannot be (4xx)."""
    FAILED = "failed"
    """The server could not (5xx)."""
    UNKNOWN = "unknown"


class AuditExportFormat(WireEnum):
    """How an export is written."""

    JSONL = "jsonl"
    """A JSON object a line."""
    CSV = "csv"
    UNKNOWN = "unknown"


class AuditRecord(Wire):
    """One thing that somebody did, or was refused."""

    id: int
    at: UtcTime
    action: str
    """The operation of the API (``hosts.cordon_host``), or what a loop did."""
    outcome: AuditOutcome
    status: int
    """HTTP status of the answer; 0 for what no request did."""
    actor: str
    """User name, ``agent:<host>``, ``service:<name>``, ``system`` or ``anonymous``."""
    acted_for: str | None
    """The user for whom a service acted."""
    token_id: str | None
    customer_id: str | None
    """The actor's customer."""
    address: str | None
    request_id: str
    resource_type: str
    resource_id: str | None
    detail: dict[str, object]
    """Old and new values, counts, reasons; never a secret."""
    sequence: int | None
    """Place in the hash chain; ``null`` for some seconds after the write."""
    hash: str | None
    """SHA-256, hex, over the hash before it and this record."""


class AuditVerification(Wire):
    """Whether the chain is whole."""

    valid: bool
    problem: str | None
    """What is wrong first, in words."""
    records: int
    """Sealed ones that were verified."""
    unsealed: int
    """Written and not in the chain yet."""
    head: str
    """Hash of the last verified record. Keep it with ``records``, somewhere else, to verify against later."""
