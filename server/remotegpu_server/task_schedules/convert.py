"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.task_schedules import Overlap, TaskSchedule
from remotegpu.types.tasks import TaskSpec
from remotegpu_server.db import tables


def to_wire(row: tables.TaskSchedule, owner: str) -> TaskSchedule:
    """What its readers see."""
    return TaskSchedule(
        id=row.id,
        name=row.name,
        owner=owner,
        owner_id=row.owner_id,
        customer_id=row.customer_id,
        workspace_id=row.workspace_id,
        cron=row.cron,
        time_zone=row.time_zone,
        overlap=Overlap(row.overlap),
        enabled=row.enabled,
        task=TaskSpec.model_validate(row.spec),
        next_at=row.next_at,
        last_at=row.last_at,
        last_error=row.last_error,
        created_at=row.created_at,
    )
