"""Searching and exporting the audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import Invalid
from remotegpu.types.audit import AuditExportFormat, AuditOutcome, AuditRecord, AuditVerification
from remotegpu.types.wire import Page
from remotegpu_server import pagination, spreadsheets
from remotegpu_server.audit import chain
from remotegpu_server.audit import service as audit
from remotegpu_server.audit.convert import to_wire
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.db import tables

_BATCH = 500
"""What a spreadsheet would run."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which records are wanted; what is ``None`` does not matter."""

    action: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    actor: str | None = None
    """Who did it, or for whom it was done."""
    outcome: AuditOutcome | None = None
    since: datetime | None = None
    until: datetime | None = None


async def list_records(
    db: AsyncSession, *, actor: Actor, wanted: Filter, limit: int, cursor: str | None
) -> Page[AuditRecord]:
    """Newest first: all for platform admins, what people of the own customer did for its owners."""
    require(actor, Action.AUDIT_READ, customer_id=actor.customer_id)
    row = tables.AuditRecord
    query = _query(actor, wanted)
    if cursor is not None:
        query = query.where(pagination.before((row.id,), cursor))
    rows = list(await db.scalars(query.order_by(row.id.desc()).limit(limit + 1)))
    audit.note(db, read="audit_records", count=min(len(rows), limit))
    following = pagination.encode([rows[limit - 1].id]) if len(rows) > limit else None
    return Page[AuditRecord](items=[to_wire(one) for one in rows[:limit]], next_cursor=following)


async def export(
    sessions: async_sessionmaker[AsyncSession],
    *,
    identify: Callable[[AsyncSession], Awaitable[Actor]],
    wanted: Filter,
    format_: AuditExportFormat,
) -> AsyncIterator[bytes]:
    """Every record that fits, oldest first, a page in memory at a time. Ends when the token does."""
    if format_ is AuditExportFormat.CSV:
        yield spreadsheets.line(AuditRecord.model_fields).encode()
    after = 0
    while True:
        async with sessions() as db:
            actor = await identify(db)
            require(actor, Action.AUDIT_READ, customer_id=actor.customer_id)
            row = tables.AuditRecord
            query = _query(actor, wanted).where(row.id > after).order_by(row.id).limit(_BATCH)
            rows = list(await db.scalars(query))
        if rows:
            yield b"".join(_line(to_wire(one), format_) for one in rows)
            after = rows[-1].id
        if len(rows) < _BATCH:
            return


async def verify(
    sessions: async_sessionmaker[AsyncSession], *, actor: Actor, sequence: int | None, hash_: str | None
) -> AuditVerification:
    """Whether the chain is whole; with a kept ``sequence`` and its hash, whether it is still the same one."""
    require(actor, Action.AUDIT_VERIFY)
    if (sequence is None) != (hash_ is None):
        raise Invalid("sequence and hash go together.")
    anchor = (sequence, hash_) if sequence is not None and hash_ is not None else None
    return await chain.verify(sessions, anchor=anchor)


def _query(actor: Actor, wanted: Filter) -> Select[tables.AuditRecord]:
    row = tables.AuditRecord
    query = select(row)
    if not actor.is_admin:
        query = query.where(row.customer_id == actor.customer_id)
    for column, value in (
        (row.action, wanted.action),
        (row.resource_type, wanted.resource_type),
        (row.resource_id, wanted.resource_id),
        (row.outcome, wanted.outcome),
    ):
        if value is not None:
            query = query.where(column == str(value))
    if wanted.actor is not None:
        query = query.where((row.actor == wanted.actor) | (row.acted_for == wanted.actor))
    if wanted.since is not None:
        query = query.where(row.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(row.at < wanted.until)
    return query


def _line(record: AuditRecord, format_: AuditExportFormat) -> bytes:
    if format_ is AuditExportFormat.JSONL:
        return record.model_dump_json().encode() + b"\n"
    values = record.model_dump(mode="json")
    values["detail"] = record.model_dump_json(include={"detail"}).removeprefix('{"detail":')[:-1]
    return spreadsheets.line(values.values()).encode()
