# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""The queue as a whole. What one request waits for stands in its environment's ``wait``."""

from __future__ import annotations

from remotegpu._sync.resource import SyncResource
from remotegpu.types.queue import EstimateAccuracy


class SyncQueue(SyncResource):
    """The queue as a whole. What one request waits for stands in its environment's ``wait``."""

    def accuracy(self) -> EstimateAccuracy:
        """How good the estimated starts of the last 30 days were. For admins."""
        return self._transport.call(EstimateAccuracy, "GET", "/v1/queue/accuracy")
