"""The queue as a whole. What one request waits for stands in its environment's ``wait``."""

from __future__ import annotations

from remotegpu._async.resource import AsyncResource
from remotegpu.types.queue import EstimateAccuracy


class AsyncQueue(AsyncResource):
    """The queue as a whole. What one request waits for stands in its environment's ``wait``."""

    async def accuracy(self) -> EstimateAccuracy:
        """How good the estimated starts of the last 30 days were. For admins."""
        return await self._transport.call(EstimateAccuracy, "GET", "/v1/queue/accuracy")
