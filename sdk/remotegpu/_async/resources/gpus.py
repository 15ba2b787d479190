"""GPUs of all hosts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, measured, segment
from remotegpu.types.hosts import Gpu, GpuCheck
from remotegpu.types.metrics import MetricsReport


class AsyncGpus(AsyncResource):
    """GPUs of all hosts."""

    async def list(
        self,
        *,
        host: str | None = None,
        model: str | None = None,
        free: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncPage[Gpu]:
        """GPUs with their load; who holds one is shown to the holder, the owner and admins."""
        params = given(host=host, model=model, free=free, limit=limit, cursor=cursor)
        return await fetch_page(self._transport, Gpu, "/v1/gpus", params)

    async def metrics(
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
        return await self._transport.call(
            MetricsReport, "GET", path, params=measured(begin, end, step_s, metric)
        )

    async def check(self, gpu: str) -> GpuCheck:
        """Have its agent test it (admins); passed, an unhealthy GPU takes work again."""
        return await self._transport.put_in_state(GpuCheck, f"/v1/gpus/{segment(gpu)}:check")

    async def restore(self, gpu: str, *, reason: str) -> Gpu:
        """Take an unhealthy GPU back on an admin's word."""
        path = f"/v1/gpus/{segment(gpu)}:restore"
        return await self._transport.call(Gpu, "POST", path, body={"reason": reason})
