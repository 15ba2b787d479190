"""Heartbeats to samples."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from remotegpu.types.agent import Heartbeat, HeartbeatGpu, WorkloadMetrics
from remotegpu_server.db.samples import Document, Sample


def sample(body: Heartbeat, *, host_id: str, at: datetime) -> Sample:
    """What a heartbeat measured, absent values left out."""
    return Sample(
        host_id=host_id,
        at=at,
        host=_document(
            body.host.model_dump(mode="json", exclude_none=True), body.host_mean, body.host_highest
        ),
        gpus={gpu.uuid: _gpu(gpu) for gpu in body.gpus},
        workloads={one.workload_id: _workload(one) for one in body.workloads},
    )


def _gpu(gpu: HeartbeatGpu) -> Document:
    highest = gpu.highest
    if gpu.metrics.utilization_max_percent is not None:
        highest = {"utilization_percent": gpu.metrics.utilization_max_percent} | highest
    return _document(gpu.metrics.model_dump(mode="json", exclude_none=True), gpu.mean, highest)


def _workload(one: WorkloadMetrics) -> Document:
    found = one.model_dump(mode="json", exclude_none=True, exclude={"workload_id"})
    if one.gpu_memory_bytes:
        found["gpu_memory_used_bytes"] = sum(one.gpu_memory_bytes.values())
    return found


def _document(last: Document, mean: Mapping[str, float], highest: Mapping[str, float]) -> Document:
    return last | {name: dict(values) for name, values in (("mean", mean), ("highest", highest)) if values}
