"""Heartbeats to samples."""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import datetime
from typing import TypeVar

from remotegpu.types.agent import Heartbeat, HeartbeatGpu, WorkloadMetrics
from remotegpu_server.db.samples import Document, Sample

_T = TypeVar("_T")


def of_inventory(body: Heartbeat, *, uuids: Set[str]) -> tuple[Heartbeat, Set[str]]:
    """The heartbeat with what it says of these GPUs alone, and the others that it names."""
    named = {gpu.uuid for gpu in body.gpus}
    for one in body.workloads:
        named |= one.gpu_memory_bytes.keys() | one.gpu_utilization_percent.keys()
    strangers = named - uuids
    if not strangers:
        return body, strangers
    workloads = [
        one.model_copy(
            update={
                "gpu_memory_bytes": _without(one.gpu_memory_bytes, strangers),
                "gpu_utilization_percent": _without(one.gpu_utilization_percent, strangers),
            }
        )
        for one in body.workloads
    ]
    gpus = [gpu for gpu in body.gpus if gpu.uuid not in strangers]
    return body.model_copy(update={"gpus": gpus, "workloads": workloads}), strangers


def _without(values: Mapping[str, _T], keys: Set[str]) -> dict[str, _T]:
    return {key: value for key, value in values.items() if key not in keys}


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
