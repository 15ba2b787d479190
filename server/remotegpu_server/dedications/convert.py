"""Rows to wire types."""

from __future__ import annotations

from collections.abc import Iterable

from remotegpu.types.dedications import Dedication, DedicationStatus, DedicationStep, StepStatus
from remotegpu_server.db import tables


def to_wire(
    row: tables.Dedication, *, host_name: str, customer_name: str, steps: Iterable[tables.DedicationStep]
) -> Dedication:
    return Dedication(
        id=row.id,
        host_id=row.host_id,
        host_name=host_name,
        customer_id=row.customer_id,
        customer_name=customer_name,
        workspace_id=row.workspace_id,
        status=DedicationStatus(row.status),
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        remark=row.remark,
        end_reason=row.end_reason,
        created_by=row.created_by,
        created_at=row.created_at,
        cleaned_at=row.cleaned_at,
        steps=[
            DedicationStep(
                name=step.name,
                status=StepStatus(step.status),
                detail=step.detail,
                attempts=step.attempts,
                started_at=step.started_at,
                finished_at=step.finished_at,
            )
            for step in steps
        ],
    )
