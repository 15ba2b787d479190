# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""GPUs of all hosts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from remotegpu._protocol import given, measured, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.hosts import Gpu, GpuCheck
from remotegpu.types.metrics import MetricsReport


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

    def metrics(
        self,
        gpu: str,
        *,
        begin: datetime | None = None,
        end: datetime | None = None,
        step_s: int | None = None,
        metric: Sequence[str] | None = None,
    ) -> MetricsReport:
        """What was measured of a GPU (admins), by id or UUID.

        Without times: the last hour. ``to_pandas()`` makes it a DataFrame.
        """
        path = f"/v1/gpus/{segment(gpu)}/metrics"
        return self._transport.call(MetricsReport, "GET", path, params=measured(begin, end, step_s, metric))

    def check(self, gpu: str) -> GpuCheck:
        """Have its agent test it (admins); passed, an unhealthy GPU takes work again."""
        return self._transport.put_in_state(GpuCheck, f"/v1/gpus/{segment(gpu)}:check")

    def restore(self, gpu: str, *, reason: str) -> Gpu:
        """Take an unhealthy GPU back on an admin's word."""
        path = f"/v1/gpus/{segment(gpu)}:restore"
        return self._transport.call(Gpu, "POST", path, body={"reason": reason})
