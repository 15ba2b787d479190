"""The hash chain over the audit trail: each sealed record's hash covers the one before it.

``hash = SHA-256(previous hash + canonical JSON of the record)``, in the order of ``sequence``; the first
follows 32 zero bytes. Sealing comes after the write (``loop.py``), so no writer waits for another.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC
from typing import Any

from sqlalchemy import func, literal_column, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.types.audit import AuditVerification
from remotegpu_server.db import tables

GENESIS = bytes(32)
BATCH = 1000
_FIELDS = (
    "id",
    "action",
    "outcome",
    "status",
    "actor",
    "acted_for",
    "token_id",
    "customer_id",
    "address",
    "request_id",
    "resource_type",
    "resource_id",
    "detail",
)


def link(previous: bytes, row: tables.AuditRecord) -> bytes:
    """The hash of a record that follows the hash ``previous``."""
    values: dict[str, Any] = {name: getattr(row, name) for name in _FIELDS}
    values |= {"xid": str(row.xid), "at": row.at.astimezone(UTC).isoformat()}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(previous + canonical.encode()).digest()


async def seal(db: AsyncSession, *, limit: int = BATCH) -> int:
    """Seal the next records; the number of them. One caller at a time: the leader's loop.

    Only records of transactions older than every running one, in the order (xid, id): whatever commits
    later comes later, so the chain never has to be opened again.
    """
    row = tables.AuditRecord
    head = (
        await db.execute(
            select(row.sequence, row.hash)
            .where(row.sequence.is_not(None))
            .order_by(row.sequence.desc())
            .limit(1)
        )
    ).one_or_none()
    sequence, previous = (head[0] or 0, head[1] or GENESIS) if head else (0, GENESIS)
    rows = list(
        await db.scalars(
            select(row)
            .where(row.sequence.is_(None), row.xid < func.pg_snapshot_xmin(func.pg_current_snapshot()))
            .order_by(literal_column("audit_records.xid"), row.id)
            .limit(limit)
        )
    )
    if not rows:
        return 0
    hashes: list[bytes] = []
    for one in rows:
        previous = link(previous, one)
        hashes.append(previous)
    ids, numbers = [one.id for one in rows], list(range(sequence + 1, sequence + 1 + len(rows)))
    await db.execute(_SEAL, {"ids": ids, "sequences": numbers, "hashes": hashes})
    return len(rows)


_SEAL = text(
    "UPDATE audit_records SET sequence = sealed.sequence, hash = sealed.hash"
    " FROM unnest(CAST(:ids AS bigint[]), CAST(:sequences AS bigint[]), CAST(:hashes AS bytea[]))"
    " AS sealed (id, sequence, hash) WHERE audit_records.id = sealed.id"
)


async def verify(
    sessions: async_sessionmaker[AsyncSession], *, anchor: tuple[int, str] | None = None
) -> AuditVerification:
    """Walk the whole chain, a page at a time. ``anchor`` is a sequence with its hash (hex) that somebody kept
    elsewhere: it proves that nobody with the database's own rights wrote the chain anew.
    """
    previous, sequence, problem = GENESIS, 0, None
    while problem is None:
        async with sessions() as db:
            rows = await _page(db, after=sequence)
        if not rows:
            break
        for row in rows:
            problem = _problem(row, follows=sequence, previous=previous, anchor=anchor)
            if problem is not None:
                break
            sequence, previous = row.sequence or 0, row.hash or b""
    if problem is None and anchor is not None and sequence < anchor[0]:
        problem = f"The chain ends at {sequence}, before the record {anchor[0]} that was kept."
    async with sessions() as db:
        unsealed = tables.AuditRecord.sequence.is_(None)
        waiting = await db.scalar(select(func.count()).select_from(tables.AuditRecord).where(unsealed))
    return AuditVerification(
        valid=problem is None,
        problem=problem,
        records=sequence,
        unsealed=waiting or 0,
        head=previous.hex(),
    )


async def _page(db: AsyncSession, *, after: int) -> list[tables.AuditRecord]:
    row = tables.AuditRecord
    return list(await db.scalars(select(row).where(row.sequence > after).order_by(row.sequence).limit(BATCH)))


def _problem(
    row: tables.AuditRecord, *, follows: int, previous: bytes, anchor: tuple[int, str] | None
) -> str | None:
    if row.sequence != follows + 1:
        return f"The record {follows + 1} is missing."
    if row.hash != link(previous, row):
        return f"The record {row.sequence} (id {row.id}) was changed, or another one before it was."
    if anchor is not None and row.sequence == anchor[0] and row.hash.hex() != anchor[1]:
        return f"The record {row.sequence} is not the one that was kept; the chain was written anew."
    return None
