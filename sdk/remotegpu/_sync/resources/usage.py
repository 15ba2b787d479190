# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Usage statistics: GPU-hours, allocations and waits. ``to_pandas()`` makes a report a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from remotegpu._protocol import given, listed
from remotegpu._sync.resource import SyncResource
from remotegpu.types.usage import UsageReport


class SyncUsage(SyncResource):
    """Usage statistics: GPU-hours, allocations and waits. ``to_pandas()`` makes a report a DataFrame."""

    def report(
        self,
        *,
        group_by: Sequence[str] | None = None,
        begin: datetime | None = None,
        end: datetime | None = None,
        customer: str | None = None,
    ) -> UsageReport:
        """For owners their customer's, for admins everybody's. By ``day`` unless `group_by` says otherwise:
        ``day``, ``customer``, ``workspace``, ``user``, ``gpu_model``. Without times: the last 30 days."""
        params = _params(group_by, begin, end) | given(customer=customer)
        return self._transport.call(UsageReport, "GET", "/v1/usage", params=params)

    def csv(
        self,
        *,
        group_by: Sequence[str] | None = None,
        begin: datetime | None = None,
        end: datetime | None = None,
        customer: str | None = None,
    ) -> str:
        """The same as CSV text."""
        params = _params(group_by, begin, end) | given(customer=customer)
        return (self._transport.send("GET", "/v1/usage.csv", params=params)).text

    def mine(
        self,
        *,
        group_by: Sequence[str] | None = None,
        begin: datetime | None = None,
        end: datetime | None = None,
    ) -> UsageReport:
        """What the caller used, in every workspace."""
        params = _params(group_by, begin, end)
        return self._transport.call(UsageReport, "GET", "/v1/usage/mine", params=params)


def _params(
    group_by: Sequence[str] | None, begin: datetime | None, end: datetime | None
) -> dict[str, object]:
    times = {name: when.isoformat() for name, when in (("from", begin), ("to", end)) if when is not None}
    return given(group_by=listed(group_by, what="group_by")) | times
