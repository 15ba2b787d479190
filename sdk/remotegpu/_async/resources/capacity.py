"""What could start now."""

from __future__ import annotations

from remotegpu._async.resource import AsyncResource
from remotegpu.types.hosts import Capacity


class AsyncCapacity(AsyncResource):
    """What could start now."""

    async def get(self) -> Capacity:
        """Free and total GPUs by model, and the largest free CPU and memory on one host."""
        return await self._transport.call(Capacity, "GET", "/v1/capacity")
