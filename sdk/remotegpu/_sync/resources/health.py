# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Whether the server is well."""

from __future__ import annotations

from remotegpu._sync.resource import SyncResource
from remotegpu.types.metrics import ScrapeTarget


class SyncHealth(SyncResource):
    """Whether the server is well. Raises :class:`remotegpu.errors.RemoteGPUError` where it is not."""

    def live(self) -> None:
        """Returns when the server process answers."""
        self._transport.send("GET", "/healthz", anonymous=True)

    def ready(self) -> None:
        """Returns when the server can work: its database answers and has the right schema."""
        self._transport.send("GET", "/readyz", anonymous=True)

    def metrics(self) -> str:
        """Prometheus metrics as text. From the server's own machine, or with the scope ``metrics``."""
        return (self._transport.send("GET", "/metrics")).text

    def scrape_targets(self) -> list[ScrapeTarget]:
        """The agents that Prometheus can scrape. For admins, or with the scope ``metrics``."""
        answer = self._transport.send("GET", "/v1/prometheus/targets")
        return [ScrapeTarget.model_validate(one, extra="ignore") for one in answer.json()]
