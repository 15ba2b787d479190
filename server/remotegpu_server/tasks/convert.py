"""Rows to wire types."""

from __future__ import annotations

from datetime import datetime

from remotegpu.types.environments import Reason
from remotegpu.types.tasks import (
    AttemptHost,
    AttemptStatus,
    Dependency,
    DependencyCondition,
    RetryOn,
    Task,
    TaskAttempt,
    TaskStatus,
)
from remotegpu_server.asks import gpu_to_wire, wait_to_wire
from remotegpu_server.db import tables
from remotegpu_server.tasks.queries import Bundle


def to_wire(bundle: Bundle) -> Task:
    """What a reader of the task sees."""
    row = bundle.task
    return Task(
        id=row.id,
        name=row.name,
        owner=bundle.owner.username,
        owner_id=row.owner_id,
        customer_id=row.customer_id,
        workspace_id=row.workspace_id,
        status=TaskStatus(row.status),
        reason=Reason(row.reason),
        message=row.message,
        stop_requested=row.stop_requested_at is not None,
        queue_position=bundle.queue_position,
        wait=wait_to_wire(row, position=bundle.queue_position, place_kept=False),
        progress=row.progress,
        progress_message=row.progress_message,
        exit_code=row.exit_code,
        attempt=row.generation - 1 if row.status == "pending" else row.generation,
        image=bundle.image.name,
        command=row.command,
        input_sha256=row.input_sha256,
        input_size_bytes=row.input_size_bytes,
        script=bundle.script,
        working_dir=row.working_dir,
        env=row.env,
        gpus=row.gpus,
        gpu_models=row.gpu_models,
        gpu_memory_bytes=row.gpu_memory_bytes,
        min_gpu_memory_bytes=row.min_gpu_memory_bytes,
        max_gpu_memory_bytes=row.max_gpu_memory_bytes,
        mig_profile=row.mig_profile,
        host_labels=row.host_labels,
        cpus=row.cpus,
        memory_bytes=row.memory_bytes,
        nodes=row.nodes,
        labels=row.labels,
        priority=row.priority,
        preemptible=row.preemptible,
        min_run_s=row.min_run_s,
        preempt_at=row.preempt_at if row.status == "running" else None,
        start_at=row.start_at,
        reservation_id=row.reservation_id,
        timeout_s=row.max_lifetime_s,
        stop_grace_s=row.stop_grace_s,
        max_retries=row.max_retries,
        retry_delay_s=row.retry_delay_s,
        retry_on=[RetryOn(one) for one in row.retry_on],
        depends_on=[
            Dependency(task_id=one.after_id, condition=DependencyCondition(one.condition))
            for one in bundle.dependencies
        ],
        array_id=row.array_id,
        array_index=row.array_index,
        schedule_id=row.schedule_id,
        hosts=[
            AttemptHost(
                rank=attempt.rank,
                host_id=host.id,
                host_name=host.name,
                allocated_gpus=[gpu_to_wire(one) for one in bundle.gpus.get(attempt.id, [])],
            )
            for attempt, host in bundle.hosts
        ],
        simulated=any(
            one.gpu.simulated for attempt, _ in bundle.hosts for one in bundle.gpus.get(attempt.id, [])
        ),
        created_at=row.created_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        deadline_at=row.deadline_at,
    )


def attempt_to_wire(
    row: tables.Attempt, *, host_name: str, released_at: datetime | None, gpu_seconds: float, late: bool
) -> TaskAttempt:
    """What a reader of the task sees of one try."""
    return TaskAttempt(
        id=row.id,
        task_id=row.task_id,
        number=row.number,
        rank=row.rank,
        status=AttemptStatus(row.status),
        reason=Reason(row.reason),
        message=row.message,
        host_id=row.host_id,
        host_name=host_name,
        exit_code=row.exit_code,
        peak_gpu_memory_bytes=row.peak_gpu_memory_bytes,
        peak_memory_bytes=row.peak_memory_bytes,
        gpu_seconds=gpu_seconds,
        late=late,
        log_bytes=row.log_bytes,
        log_truncated=row.log_truncated,
        created_at=row.created_at,
        claimed_at=row.claimed_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        released_at=released_at,
    )
