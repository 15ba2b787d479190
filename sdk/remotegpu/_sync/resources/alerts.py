# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Alerts: what the rules say of hosts, GPUs and work."""

from __future__ import annotations

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.alerts import Alert


class SyncAlerts(SyncResource):
    """Alerts: what the rules say of hosts, GPUs and work."""

    def list(
        self,
        *,
        status: str | None = None,
        severity: str | None = None,
        rule: str | None = None,
        object_type: str | None = None,
        object_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Alert]:
        """Newest first; `status` is `pending`, `firing` or `resolved`. Admins see all, others what
        is theirs.
        """
        query = given(
            status=status,
            severity=severity,
            rule=rule,
            object_type=object_type,
            object_id=object_id,
            limit=limit,
            cursor=cursor,
        )
        return fetch_page(self._transport, Alert, "/v1/alerts", query)

    def get(self, alert_id: str) -> Alert:
        """One alert."""
        return self._transport.call(Alert, "GET", f"/v1/alerts/{segment(alert_id)}")

    def acknowledge(self, alert_id: str) -> Alert:
        """Say that somebody looks after it (admins)."""
        path = f"/v1/alerts/{segment(alert_id)}:acknowledge"
        return self._transport.put_in_state(Alert, path)
