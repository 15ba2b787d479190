"""Alert rules: what admins want to hear of."""

from __future__ import annotations

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, segment
from remotegpu.types.alerts import AlertRule, AlertScope, AlertSignals


class AsyncAlertRules(AsyncResource):
    """Alert rules: what admins want to hear of."""

    async def signals(self) -> AlertSignals:
        """What rules can be about, with units and bounds."""
        return await self._transport.call(AlertSignals, "GET", "/v1/alert-signals")

    async def list(self, *, limit: int | None = None, cursor: str | None = None) -> AsyncPage[AlertRule]:
        """All rules, by name."""
        return await fetch_page(
            self._transport, AlertRule, "/v1/alert-rules", given(limit=limit, cursor=cursor)
        )

    async def create(
        self,
        *,
        name: str,
        signal: str,
        threshold: float,
        operator: str | None = None,
        duration_s: float | None = None,
        severity: str | None = None,
        scope: AlertScope | None = None,
        advice: str | None = None,
        enabled: bool | None = None,
        idempotency_key: str | None = None,
    ) -> AlertRule:
        """Raise an alert when `signal` is above `threshold` (or what `operator` says: `>=`, `<`, `<=`, `==`)
        for `duration_s` seconds.
        """
        body = given(
            name=name,
            signal=signal,
            threshold=threshold,
            operator=operator,
            duration_s=duration_s,
            severity=severity,
            scope=_scope(scope),
            advice=advice,
            enabled=enabled,
        )
        return await self._transport.create(
            AlertRule, "/v1/alert-rules", body=body, idempotency_key=idempotency_key
        )

    async def get(self, rule: str) -> AlertRule:
        """One rule, by name or id."""
        return await self._transport.call(AlertRule, "GET", f"/v1/alert-rules/{segment(rule)}")

    async def update(
        self,
        rule: str,
        *,
        operator: str | None = None,
        threshold: float | None = None,
        duration_s: float | None = None,
        severity: str | None = None,
        scope: AlertScope | None = None,
        advice: str | None = None,
        enabled: bool | None = None,
    ) -> AlertRule:
        """Change what is named; `enabled=False` switches it off. What it had fired is resolved."""
        body = given(
            operator=operator,
            threshold=threshold,
            duration_s=duration_s,
            severity=severity,
            scope=_scope(scope),
            advice=advice,
            enabled=enabled,
        )
        path = f"/v1/alert-rules/{segment(rule)}"
        return await self._transport.call(AlertRule, "PATCH", path, body=body)

    async def delete(self, rule: str) -> None:
        """Its alerts stay, resolved; a seeded rule can only be switched off."""
        await self._transport.send("DELETE", f"/v1/alert-rules/{segment(rule)}")


def _scope(scope: AlertScope | None) -> dict[str, object] | None:
    return None if scope is None else scope.model_dump(mode="json")
