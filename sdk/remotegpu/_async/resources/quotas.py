"""Quotas: what a subject may hold at once."""

from __future__ import annotations

from collections.abc import Mapping

from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import segment
from remotegpu.types.quotas import Quota


class AsyncQuotas(AsyncResource):
    """Quotas: what a subject may hold at once."""

    async def mine(self) -> Quota:
        """All limits that bind the caller, and what is used of them."""
        return await self._transport.call(Quota, "GET", "/v1/quota")

    async def get(self, subject: str, subject_id: str) -> Quota:
        """The limits of a ``user`` or ``customer``, named by id or name."""
        return await self._transport.call(Quota, "GET", _path(subject, subject_id))

    async def set(self, subject: str, subject_id: str, *, limits: Mapping[str, int | None]) -> Quota:
        """Set limits by resource: 0 allows none, ``None`` is unlimited, those left out stay as they are."""
        body = {"limits": dict(limits)}
        return await self._transport.call(Quota, "PUT", _path(subject, subject_id), body=body)


def _path(subject: str, subject_id: str) -> str:
    return f"/v1/quotas/{segment(subject)}/{segment(subject_id)}"
