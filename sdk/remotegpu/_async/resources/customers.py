"""Customers: the tenants. For admins."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, measured, segment
from remotegpu.types.identity import Customer
from remotegpu.types.metrics import MetricsReport


class AsyncCustomers(AsyncResource):
    """Customers: the tenants. For admins. A customer is named by id or name."""

    async def list(self, *, limit: int | None = None, cursor: str | None = None) -> AsyncPage[Customer]:
        """All customers."""
        return await fetch_page(self._transport, Customer, "/v1/customers", given(limit=limit, cursor=cursor))

    async def create(
        self,
        *,
        name: str,
        display_name: str | None = None,
        company: str | None = None,
        code: str | None = None,
        idempotency_key: str | None = None,
    ) -> Customer:
        """A new customer."""
        body = given(name=name, display_name=display_name, company=company, code=code)
        return await self._transport.create(
            Customer, "/v1/customers", body=body, idempotency_key=idempotency_key
        )

    async def get(self, customer: str) -> Customer:
        """One customer."""
        return await self._transport.call(Customer, "GET", f"/v1/customers/{segment(customer)}")

    async def metrics(
        self,
        customer: str,
        *,
        begin: datetime | None = None,
        end: datetime | None = None,
        step_s: int | None = None,
        metric: Sequence[str] | None = None,
    ) -> MetricsReport:
        """What was measured of all that ran for a customer, together (owners, admins).

        Without times: the last hour. ``to_pandas()`` makes it a DataFrame.
        """
        path = f"/v1/customers/{segment(customer)}/metrics"
        return await self._transport.call(
            MetricsReport, "GET", path, params=measured(begin, end, step_s, metric)
        )

    async def update(
        self,
        customer: str,
        *,
        display_name: str | None = None,
        company: str | None = None,
        code: str | None = None,
    ) -> Customer:
        """Change what is given."""
        body = given(display_name=display_name, company=company, code=code)
        return await self._transport.call(Customer, "PATCH", f"/v1/customers/{segment(customer)}", body=body)

    async def suspend(
        self, customer: str, *, environments: str | None = None, grace_s: int | None = None
    ) -> Customer:
        """Keep every user of the customer out. `environments`: `keep` (the default), `stop` or
        `stop_after_grace` what runs.
        """
        return await self._transport.put_in_state(
            Customer,
            f"/v1/customers/{segment(customer)}:suspend",
            body=given(environments=environments, grace_s=grace_s),
        )

    async def resume(self, customer: str) -> Customer:
        """End a suspension."""
        return await self._transport.put_in_state(Customer, f"/v1/customers/{segment(customer)}:resume")
