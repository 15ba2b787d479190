"""Rows to wire types."""

from __future__ import annotations

from collections.abc import Sequence

from remotegpu.types.quotas import (
    PolicyTarget,
    QuotaPolicy,
    QuotaRequest,
    QuotaRequestStatus,
    QuotaResource,
    QuotaSubject,
)
from remotegpu_server.db import tables


def policy_to_wire(
    row: tables.QuotaPolicy,
    *,
    limits: Sequence[tables.QuotaPolicyLimit],
    targets: Sequence[tuple[tables.QuotaPolicyTarget, str | None]],
    subjects: int,
) -> QuotaPolicy:
    """A policy with its limits, and its targets with the customer's name."""
    return QuotaPolicy(
        id=row.id,
        name=row.name,
        description=row.description,
        limits={QuotaResource(one.resource): one.limit_value for one in limits},
        window_s=next((one.window_s for one in limits if one.window_s is not None), None),
        applies_to=[
            PolicyTarget(subject=QuotaSubject(one.subject_type), customer=name, group=one.group_name)
            for one, name in targets
        ],
        subjects=subjects,
        created_at=row.created_at,
    )


def request_to_wire(row: tables.QuotaRequest, *, requested_by: str, decided_by: str | None) -> QuotaRequest:
    """A request for more, with the user names of both sides."""
    return QuotaRequest(
        id=row.id,
        subject=QuotaSubject(row.subject_type),
        subject_id=row.subject_id,
        subject_name=row.subject_name,
        resource=QuotaResource(row.resource),
        amount=row.amount,
        until=row.wanted_until,
        why=row.why,
        limit_before=row.limit_before,
        requested_by=requested_by,
        status=QuotaRequestStatus(row.status),
        granted_amount=row.granted_amount,
        granted_until=row.granted_until,
        decided_by=decided_by,
        note=row.note,
        created_at=row.created_at,
        decided_at=row.decided_at,
    )
