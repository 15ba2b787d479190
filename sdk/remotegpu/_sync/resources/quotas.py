# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Quotas: what a subject may hold at once."""

from __future__ import annotations

from collections.abc import Mapping

from remotegpu._protocol import segment
from remotegpu._sync.resource import SyncResource
from remotegpu.types.quotas import Quota


class SyncQuotas(SyncResource):
    """Quotas: what a subject may hold at once."""

    def mine(self) -> Quota:
        """All limits that bind the caller, and what is used of them."""
        return self._transport.call(Quota, "GET", "/v1/quota")

    def get(self, subject: str, subject_id: str) -> Quota:
        """The limits of a ``user`` or ``customer``, named by id or name."""
        return self._transport.call(Quota, "GET", _path(subject, subject_id))

    def set(self, subject: str, subject_id: str, *, limits: Mapping[str, int | None]) -> Quota:
        """Set limits by resource: 0 allows none, ``None`` is unlimited, those left out stay as they are."""
        body = {"limits": dict(limits)}
        return self._transport.call(Quota, "PUT", _path(subject, subject_id), body=body)


def _path(subject: str, subject_id: str) -> str:
    return f"/v1/quotas/{segment(subject)}/{segment(subject_id)}"
