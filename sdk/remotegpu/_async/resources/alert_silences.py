"""Silences: nobody is told of an alert for a while."""

from __future__ import annotations

from datetime import datetime

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, segment
from remotegpu.types.alerts import AlertSilence


class AsyncAlertSilences(AsyncResource):
    """Silences: nobody is told of an alert for a while."""

    async def list(self, *, limit: int | None = None, cursor: str | None = None) -> AsyncPage[AlertSilence]:
        """Those that hold, the first to end first."""
        query = given(limit=limit, cursor=cursor)
        return await fetch_page(self._transport, AlertSilence, "/v1/alert-silences", query)

    async def create(
        self,
        *,
        until: datetime,
        rule: str | None = None,
        object: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> AlertSilence:
        """Keep quiet about a rule, an object, both, or everything. What still fires at the end is told."""
        body = given(until=until.isoformat(), rule=rule, object=object, reason=reason)
        return await self._transport.create(
            AlertSilence, "/v1/alert-silences", body=body, idempotency_key=idempotency_key
        )

    async def delete(self, silence_id: str) -> None:
        """End it now."""
        await self._transport.send("DELETE", f"/v1/alert-silences/{segment(silence_id)}")
