# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Placement: what would happen to a request."""

from __future__ import annotations

from collections.abc import Mapping

from remotegpu._protocol import decode, given
from remotegpu._sync.resource import SyncResource
from remotegpu.types.environments import PlacementExplanation


class SyncPlacements(SyncResource):
    """Placement: what would happen to a request."""

    def explain(
        self,
        *,
        image: str,
        gpus: int | None = None,
        gpu_model: str | None = None,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> PlacementExplanation:
        """Whether such an environment would start now, wait (and why) or be refused. Reserves nothing."""
        body = given(
            image=image,
            gpus=gpus,
            gpu_model=gpu_model,
            cpus=cpus,
            memory_bytes=memory_bytes,
            env=None if env is None else dict(env),
        )
        response = self._transport.send("POST", "/v1/placements:explain", body=body, repeatable=True)
        return decode(PlacementExplanation, response)
