"""Quota requests: asking for a higher limit."""

from __future__ import annotations

from datetime import datetime

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, segment
from remotegpu.types.quotas import QuotaRequest


class AsyncQuotaRequests(AsyncResource):
    """Quota requests: asking for a higher limit."""

    async def list(
        self, *, status: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> AsyncPage[QuotaRequest]:
        """The own ones, newest first; for owners those of their customer, for admins all."""
        params = given(status=status, limit=limit, cursor=cursor)
        return await fetch_page(self._transport, QuotaRequest, "/v1/quota-requests", params)

    async def create(
        self,
        *,
        resource: str,
        amount: int,
        why: str,
        until: datetime | None = None,
        subject: str | None = None,
        subject_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> QuotaRequest:
        """Ask for the limit `amount`, until a time or for good. Left out, it is for the caller."""
        body = given(
            resource=resource,
            amount=amount,
            why=why,
            until=None if until is None else until.isoformat(),
            subject=subject,
            subject_id=subject_id,
        )
        return await self._transport.create(
            QuotaRequest, "/v1/quota-requests", body=body, idempotency_key=idempotency_key
        )

    async def get(self, request_id: str) -> QuotaRequest:
        """One request."""
        return await self._transport.call(QuotaRequest, "GET", f"/v1/quota-requests/{segment(request_id)}")

    async def approve(
        self,
        request_id: str,
        *,
        amount: int | None = None,
        until: datetime | None = None,
        note: str | None = None,
    ) -> QuotaRequest:
        """Grant it, or a part of it, or for a shorter time; left out: as asked. It counts at once."""
        body = given(amount=amount, until=None if until is None else until.isoformat(), note=note)
        path = f"/v1/quota-requests/{segment(request_id)}:approve"
        return await self._transport.call(QuotaRequest, "POST", path, body=body)

    async def refuse(self, request_id: str, *, note: str) -> QuotaRequest:
        """Say no, and why."""
        path = f"/v1/quota-requests/{segment(request_id)}:refuse"
        return await self._transport.call(QuotaRequest, "POST", path, body={"note": note})

    async def withdraw(self, request_id: str) -> QuotaRequest:
        """Take an own open request back."""
        path = f"/v1/quota-requests/{segment(request_id)}:withdraw"
        return await self._transport.call(QuotaRequest, "POST", path)
