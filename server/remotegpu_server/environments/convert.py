"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.environments import Environment, EnvironmentStatus, IdlePolicy, Reason
from remotegpu_server.asks import gpu_to_wire, wait_to_wire
from remotegpu_server.environments.queries import Bundle


def to_wire(bundle: Bundle) -> Environment:
    """What a reader of the environment sees. Nothing of ``secret_env`` ever."""
    row, placement, host = bundle.environment, bundle.placement, bundle.host
    return Environment(
        id=row.id,
        name=row.name,
        display_name=row.display_name,
        owner=bundle.owner.username,
        owner_id=row.owner_id,
        customer_id=row.customer_id,
        workspace_id=row.workspace_id,
        status=EnvironmentStatus(row.status),
        reason=Reason(row.reason),
        message=row.message,
        progress_percent=row.progress_percent,
        queue_position=bundle.queue_position,
        wait=wait_to_wire(row, position=bundle.queue_position, place_kept=bundle.place_kept),
        priority=row.priority,
        preemptible=row.preemptible,
        min_run_s=row.min_run_s,
        start_at=row.start_at,
        reservation_id=row.reservation_id,
        preempt_at=row.preempt_at if row.status == "running" else None,
        generation=row.generation,
        image=bundle.image.name,
        image_reference=bundle.image.reference,
        gpus=row.gpus,
        gpu_models=row.gpu_models,
        gpu_memory_bytes=row.gpu_memory_bytes,
        min_gpu_memory_bytes=row.min_gpu_memory_bytes,
        max_gpu_memory_bytes=row.max_gpu_memory_bytes,
        mig_profile=row.mig_profile,
        host_labels=row.host_labels,
        cpus=row.cpus,
        memory_bytes=row.memory_bytes,
        env=row.env,
        host_id=placement.host_id if placement else None,
        host_name=host.name if host else None,
        allocated_gpus=[gpu_to_wire(held) for held in bundle.gpus],
        simulated=any(held.gpu.simulated for held in bundle.gpus),
        address=row.address,
        exit_code=row.exit_code,
        log_tail=row.log_tail,
        created_at=row.created_at,
        started_at=row.started_at,
        stopped_at=row.stopped_at,
        stop_at=row.stop_at,
        max_lifetime_s=row.max_lifetime_s,
        idle=None if row.idle_policy is None else IdlePolicy.model_validate(row.idle_policy),
        idle_since=row.idle_since,
        stops_at=min((at for at in (row.deadline_at, row.idle_stop_at) if at is not None), default=None),
    )
