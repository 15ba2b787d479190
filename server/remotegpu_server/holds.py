"""What a host gives and takes back: its lock, the release of a placement, the revision of its desired set."""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify


async def lock_host(db: AsyncSession, *, host_id: str) -> tables.Host | None:
    """The host's row, locked against other placements and changes of its desired set."""
    found = select(tables.Host).where(tables.Host.id == host_id)
    result: tables.Host | None = await db.scalar(
        found.with_for_update(key_share=True).execution_options(populate_existing=True)
    )
    return result


async def release(db: AsyncSession, *, placement: tables.Placement, proof: str) -> bool:
    """Give back everything the placement holds, exactly once. False: it was released before.

    ``proof`` is ``absent``, ``reboot``, ``fence`` (of an attempt) or ``admin``.
    """
    held, promised = tables.Placement, tables.Allocation
    released = await db.scalar(
        update(held)
        .where(held.id == placement.id, held.released_at.is_(None))
        .values(released_at=func.now(), release_proof=proof)
        .returning(held.id)
        .execution_options(synchronize_session=False)
    )
    if released is None:
        return False
    await db.execute(
        update(promised)
        .where(promised.placement_id == placement.id, promised.released_at.is_(None))
        .values(released_at=func.now(), release_proof=proof)
        .execution_options(synchronize_session=False)
    )
    await bump_revision(db, host_id=placement.host_id)
    notify(db, "queue")
    return True


async def bump_revision(db: AsyncSession, *, host_id: str) -> None:
    """The desired set of the host changed: wake its agent."""
    host = tables.Host
    await db.execute(
        update(host)
        .where(host.id == host_id)
        .values(revision=host.revision + 1)
        .execution_options(synchronize_session=False)
    )
    notify(db, f"host:{host_id}")
