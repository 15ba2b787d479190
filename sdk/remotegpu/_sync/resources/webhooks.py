# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Webhooks: programs that are told what happens."""

from __future__ import annotations

from collections.abc import Sequence

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.webhooks import Webhook, WebhookCreated, WebhookDelivery


class SyncWebhooks(SyncResource):
    """Webhooks: programs that are told what happens."""

    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Page[Webhook]:
        """The own webhooks, the oldest first."""
        return fetch_page(self._transport, Webhook, "/v1/webhooks", given(limit=limit, cursor=cursor))

    def create(
        self,
        *,
        url: str,
        events: Sequence[str],
        description: str | None = None,
        idempotency_key: str | None = None,
    ) -> WebhookCreated:
        """Have a public `https://` address told of `events` (`job.completed`, `alert.triggered`, …). The
        answer holds the secret that signs every delivery, this once.
        """
        body = given(url=url, events=[*events], description=description)
        return self._transport.create(
            WebhookCreated, "/v1/webhooks", body=body, idempotency_key=idempotency_key
        )

    def get(self, webhook_id: str) -> Webhook:
        """One webhook, without its secret."""
        return self._transport.call(Webhook, "GET", f"/v1/webhooks/{segment(webhook_id)}")

    def update(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """Change what is named; what waits is tried again at once."""
        body = given(
            url=url,
            events=None if events is None else [*events],
            description=description,
            enabled=enabled,
        )
        return self._transport.call(Webhook, "PATCH", f"/v1/webhooks/{segment(webhook_id)}", body=body)

    def delete(self, webhook_id: str) -> None:
        """With its log, and what was not delivered yet."""
        self._transport.send("DELETE", f"/v1/webhooks/{segment(webhook_id)}")

    def rotate_secret(self, webhook_id: str) -> WebhookCreated:
        """A new secret, shown this once; the old one signs nothing any more."""
        path = f"/v1/webhooks/{segment(webhook_id)}:rotate-secret"
        return self._transport.call(WebhookCreated, "POST", path)

    def test(self, webhook_id: str) -> WebhookDelivery:
        """Send a `webhook.test`; `deliveries` says how it went."""
        path = f"/v1/webhooks/{segment(webhook_id)}:test"
        return self._transport.call(WebhookDelivery, "POST", path)

    def deliveries(
        self, webhook_id: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[WebhookDelivery]:
        """What was sent in the last days, the newest first."""
        path = f"/v1/webhooks/{segment(webhook_id)}/deliveries"
        return fetch_page(self._transport, WebhookDelivery, path, given(limit=limit, cursor=cursor))
