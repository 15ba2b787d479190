"""Rows to wire types."""

from __future__ import annotations

from typing import Any

from remotegpu.types.hosts import Connection, Host, HostHealth, HostMetrics, Operational, RuntimeKind
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import tables
from remotegpu_server.db.samples import Sample, shown
from remotegpu_server.placement import HostInventory


def to_wire(
    row: tables.Host, *, inventory: HostInventory | None, sample: Sample | None, simulated: bool
) -> Host:
    """A host with what is free on it; ``inventory`` is ``None`` before the first agent session."""
    facts: dict[str, Any] = row.inventory or {}
    reason = inventory.not_ready_reason if inventory else capacity.not_ready_reason(row, returning=False)
    return Host(
        id=row.id,
        name=row.name,
        labels=row.labels,
        connection=Connection(row.connection),
        operational=Operational(row.operational),
        operational_reason=row.operational_reason,
        operational_since=row.operational_since,
        drain_deadline=row.drain_deadline,
        drained_at=row.drained_at,
        health=HostHealth(row.health),
        health_reason=row.health_reason,
        ready=reason is None,
        not_ready_reason=reason,
        runtime=RuntimeKind(row.runtime) if row.runtime else None,
        runtime_detail=row.runtime_detail,
        simulated=simulated,
        agent_version=row.agent_version,
        hostname=row.hostname,
        ip_address=row.ip_address,
        address=row.address,
        os=facts.get("os"),
        driver_version=facts.get("driver_version"),
        cuda_version=facts.get("cuda_version"),
        cpus=row.cpus,
        memory_bytes=row.memory_bytes,
        cpus_free=max(inventory.cpus_free, 0.0) if inventory else None,
        memory_free_bytes=max(inventory.memory_free_bytes, 0) if inventory else None,
        gpus_total=len(inventory.gpus) if inventory else 0,
        gpus_free=sum(gpu.free for gpu in inventory.gpus) if inventory and inventory.ready else 0,
        shared_home=row.shared_home,
        metrics=HostMetrics.model_validate(shown(sample.host)) if sample else None,
        last_heartbeat_at=row.last_heartbeat_at,
        created_at=row.created_at,
    )
