"""The audit trail: search, export, verification."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Query
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import StreamingResponse

from remotegpu.types.audit import AuditExportFormat, AuditOutcome, AuditRecord, AuditVerification
from remotegpu.types.wire import Page
from remotegpu_server.audit import read
from remotegpu_server.audit.service import note_detached
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.deps import Caller, Cursor, Db, DetachedCaller, Limit, Sessions, identify
from remotegpu_server.routing import api_router

router = api_router("audit")

_Word = Annotated[str | None, Query(max_length=128)]


def _filter(
    action: _Word = None,
    resource_type: _Word = None,
    resource_id: _Word = None,
    actor: Annotated[
        str | None, Query(max_length=128, description="Who did it, or for whom it was done.")
    ] = None,
    outcome: AuditOutcome | None = None,
    since: Annotated[datetime | None, Query(description="From this moment on.")] = None,
    until: Annotated[datetime | None, Query(description="Before this moment.")] = None,
) -> read.Filter:
    return read.Filter(
        action=action,
        resource_type=resource_type,
        resource_id=resource_id,
        actor=actor,
        outcome=outcome,
        since=since,
        until=until,
    )


Wanted = Annotated[read.Filter, Depends(_filter)]


@router.get("/v1/audit/records", summary="Search the audit trail")
async def list_audit_records(
    db: Db, caller: Caller, wanted: Wanted, limit: Limit = 50, cursor: Cursor = None
) -> Page[AuditRecord]:
    """Newest first. Owners see what people of their customer did. Reading it is recorded, too."""
    return await read.list_records(db, actor=caller, wanted=wanted, limit=limit, cursor=cursor)


_EXPORT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Every record that fits, as lines.",
        "content": {
            "text/csv": {"schema": {"type": "string"}},
            "application/jsonl": {"schema": {"type": "string"}},
        },
    }
}


@router.get("/v1/audit/records:export", summary="Export the audit trail", responses=_EXPORT)
async def export_audit_records(
    request: Request,
    sessions: Sessions,
    caller: DetachedCaller,
    wanted: Wanted,
    format: AuditExportFormat = AuditExportFormat.JSONL,
) -> StreamingResponse:
    """Oldest first, as JSON lines or CSV, of any length. Cells that a spreadsheet would run get an apostrophe
    in front.
    """
    require(caller, Action.AUDIT_READ, customer_id=caller.customer_id)
    note_detached(read="audit_records", format=str(format))

    async def identify_again(db: AsyncSession) -> Actor:
        return await identify(request, db)

    return StreamingResponse(
        read.export(sessions, identify=identify_again, wanted=wanted, format_=format),
        media_type="text/csv" if format is AuditExportFormat.CSV else "application/jsonl",
        headers={"Content-Disposition": f'attachment; filename="audit.{format}"'},
    )


@router.get("/v1/audit/verification", summary="Verify the audit trail")
async def verify_audit(
    sessions: Sessions,
    caller: DetachedCaller,
    sequence: Annotated[int | None, Query(ge=1, description="Of a record that somebody kept.")] = None,
    hash: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="Its hash.")] = None,
) -> AuditVerification:
    """Walks the whole hash chain; takes a second for every 50,000 records or so."""
    return await read.verify(sessions, actor=caller, sequence=sequence, hash_=hash)
