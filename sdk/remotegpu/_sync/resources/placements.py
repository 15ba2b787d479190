# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Placement: what would happen to a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from remotegpu._protocol import decode, dumped, given, listed
from remotegpu._sync.resource import SyncResource
from remotegpu.types.environments import IdlePolicy, PlacementExplanation


class SyncPlacements(SyncResource):
    """Placement: what would happen to a request."""

    def explain(
        self,
        *,
        image: str,
        gpus: int | None = None,
        gpu_models: Sequence[str] | None = None,
        gpu_memory_bytes: int | None = None,
        min_gpu_memory_bytes: int | None = None,
        max_gpu_memory_bytes: int | None = None,
        mig_profile: str | None = None,
        host_labels: Mapping[str, str] | None = None,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
        workspace: str | None = None,
        stop_at: datetime | None = None,
        max_lifetime_s: float | None = None,
        idle: IdlePolicy | None = None,
        priority: int | None = None,
        preemptible: bool | None = None,
        min_run_s: float | None = None,
        start_at: datetime | None = None,
        reservation: str | None = None,
    ) -> PlacementExplanation:
        """Whether such an environment would start now, wait (and why) or be refused. Reserves nothing."""
        body = given(
            image=image,
            gpus=gpus,
            gpu_models=listed(gpu_models, what="gpu_models"),
            gpu_memory_bytes=gpu_memory_bytes,
            min_gpu_memory_bytes=min_gpu_memory_bytes,
            max_gpu_memory_bytes=max_gpu_memory_bytes,
            mig_profile=mig_profile,
            host_labels=None if host_labels is None else dict(host_labels),
            cpus=cpus,
            memory_bytes=memory_bytes,
            env=None if env is None else dict(env),
            workspace=workspace,
            stop_at=None if stop_at is None else stop_at.isoformat(),
            max_lifetime_s=max_lifetime_s,
            idle=dumped(idle, IdlePolicy, what="idle"),
            priority=priority,
            preemptible=preemptible,
            min_run_s=min_run_s,
            start_at=None if start_at is None else start_at.isoformat(),
            reservation=reservation,
        )
        response = self._transport.send("POST", "/v1/placements:explain", body=body, repeatable=True)
        return decode(PlacementExplanation, response)
