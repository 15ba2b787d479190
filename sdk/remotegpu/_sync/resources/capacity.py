# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""What could start now."""

from __future__ import annotations

from remotegpu._sync.resource import SyncResource
from remotegpu.types.hosts import Capacity


class SyncCapacity(SyncResource):
    """What could start now."""

    def get(self) -> Capacity:
        """Free and total GPUs by model, and the largest free CPU and memory on one host."""
        return self._transport.call(Capacity, "GET", "/v1/capacity")
