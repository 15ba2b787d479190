# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""The audit trail."""

from __future__ import annotations

from datetime import datetime

from remotegpu._protocol import given
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.audit import AuditRecord, AuditVerification


class SyncAudit(SyncResource):
    """The audit trail. For admins, and for owners about people of their customer."""

    def list(
        self,
        *,
        action: str | None = None,
        resource_type: str | None = None,
        resource_id: str | None = None,
        actor: str | None = None,
        outcome: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[AuditRecord]:
        """Who did what, newest first."""
        query = _filter(action, resource_type, resource_id, actor, outcome, since, until)
        query |= given(limit=limit, cursor=cursor)
        return fetch_page(self._transport, AuditRecord, "/v1/audit/records", query)

    def export(
        self,
        *,
        format: str | None = None,
        action: str | None = None,
        resource_type: str | None = None,
        resource_id: str | None = None,
        actor: str | None = None,
        outcome: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> str:
        """Everything that fits, oldest first, as `jsonl` (the default) or `csv`."""
        query = _filter(action, resource_type, resource_id, actor, outcome, since, until)
        query |= given(format=format)
        return (self._transport.send("GET", "/v1/audit/records:export", params=query)).text

    def verify(self, *, sequence: int | None = None, hash: str | None = None) -> AuditVerification:
        """Whether the hash chain is whole; with a `sequence` and `hash` kept from an earlier answer, whether
        it is still the same chain.
        """
        return self._transport.call(
            AuditVerification, "GET", "/v1/audit/verification", params=given(sequence=sequence, hash=hash)
        )


def _filter(
    action: str | None,
    resource_type: str | None,
    resource_id: str | None,
    actor: str | None,
    outcome: str | None,
    since: datetime | None,
    until: datetime | None,
) -> dict[str, object]:
    return given(
        action=action,
        resource_type=resource_type,
        resource_id=resource_id,
        actor=actor,
        outcome=outcome,
        since=since.isoformat() if since else None,
        until=until.isoformat() if until else None,
    )
