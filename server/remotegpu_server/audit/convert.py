"""Rows to wire."""

from __future__ import annotations

from remotegpu.types.audit import AuditOutcome, AuditRecord
from remotegpu_server.db import tables


def to_wire(row: tables.AuditRecord) -> AuditRecord:
    """A record as answered."""
    return AuditRecord(
        id=row.id,
        at=row.at,
        action=row.action,
        outcome=AuditOutcome(row.outcome),
        status=row.status,
        actor=row.actor,
        acted_for=row.acted_for,
        token_id=row.token_id,
        customer_id=row.customer_id,
        address=row.address,
        request_id=row.request_id,
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        detail=row.detail,
        sequence=row.sequence,
        hash=row.hash.hex() if row.hash is not None else None,
    )
