"""Placement: what would happen to a request."""

from __future__ import annotations

from collections.abc import Mapping

from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import decode, given
from remotegpu.types.environments import PlacementExplanation


class AsyncPlacements(AsyncResource):
    """Placement: what would happen to a request."""

    async def explain(
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
        response = await self._transport.send("POST", "/v1/placements:explain", body=body, repeatable=True)
        return decode(PlacementExplanation, response)
