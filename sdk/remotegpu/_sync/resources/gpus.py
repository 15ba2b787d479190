# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""GPUs of all hosts."""

from __future__ import annotations

from remotegpu._protocol import given
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.hosts import Gpu


class SyncGpus(SyncResource):
    """GPUs of all hosts."""

    def list(
        self,
        *,
        host: str | None = None,
        model: str | None = None,
        free: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Gpu]:
        """GPUs with their load; who holds one is shown to the holder, the owner and admins."""
        params = given(host=host, model=model, free=free, limit=limit, cursor=cursor)
        return fetch_page(self._transport, Gpu, "/v1/gpus", params)
