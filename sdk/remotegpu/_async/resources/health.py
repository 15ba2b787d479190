"""Whether the server is well."""

from __future__ import annotations

from remotegpu._async.resource import AsyncResource
from remotegpu.types.metrics import ScrapeTarget


class AsyncHealth(AsyncResource):
    """Whether the server is well. Raises :class:`remotegpu.errors.RemoteGPUError` where it is not."""

    async def live(self) -> None:
        """Returns when the server process answers."""
        await self._transport.send("GET", "/healthz", anonymous=True)

    async def ready(self) -> None:
        """Returns when the server can work: its database answers and has the right schema."""
        await self._transport.send("GET", "/readyz", anonymous=True)

    async def metrics(self) -> str:
        """Prometheus metrics as text. From the server's own machine, or with the scope ``metrics``."""
        return (await self._transport.send("GET", "/metrics")).text

    async def scrape_targets(self) -> list[ScrapeTarget]:
        """The agents that Prometheus can scrape. For admins, or with the scope ``metrics``."""
        answer = await self._transport.send("GET", "/v1/prometheus/targets")
        return [ScrapeTarget.model_validate(one, extra="ignore") for one in answer.json()]
