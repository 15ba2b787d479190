"""The audit trail."""

from __future__ import annotations

from datetime import datetime

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given
from remotegpu.types.audit import AuditRecord, AuditVerification


class AsyncAudit(AsyncResource):
    """The audit trail. For admins, and for owners about people of their customer."""

    async def list(
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
    ) -> AsyncPage[AuditRecord]:
        """Who did what, newest first."""
        query = _filter(action, resource_type, resource_id, actor, outcome, since, until)
        query |= given(limit=limit, cursor=cursor)
        return await fetch_page(self._transport, AuditRecord, "/v1/audit/records", query)

    async def export(
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
        return (await self._transport.send("GET", "/v1/audit/records:export", params=query)).text

    async def verify(self, *, sequence: int | None = None, hash: str | None = None) -> AuditVerification:
        """Whether the hash chain is whole; with a `sequence` and `hash` kept from an earlier answer, whether
        it is still the same chain.
        """
        return await self._transport.call(
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
