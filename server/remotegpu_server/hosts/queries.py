"""SQL of hosts that is used more than once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound
from remotegpu_server.db import tables


async def found(db: AsyncSession, host: str, *, lock: bool = False) -> tables.Host:
    """The host with this id or name, locked against placements if asked. Raises :class:`NotFound`."""
    query = select(tables.Host).where((tables.Host.id == host) | (tables.Host.name == host))
    if lock:
        query = query.with_for_update(key_share=True)
    row: tables.Host | None = await db.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise NotFound("There is no such host.")
    return row


async def change(db: AsyncSession, row: tables.Host, **values: Any) -> tables.Host:
    """Write columns of a locked host."""
    changed = await db.scalar(
        update(tables.Host)
        .where(tables.Host.id == row.id)
        .values(**values)
        .returning(tables.Host)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert changed is not None, "the row is locked"
    return changed


async def live_environments(db: AsyncSession, *, host_id: str) -> Sequence[str]:
    """Ids of the environments that hold something on the host, in id order."""
    held, wanted = tables.Placement, tables.Environment
    rows = await db.scalars(
        select(wanted.id)
        .join(held, held.environment_id == wanted.id)
        .where(held.host_id == host_id, held.released_at.is_(None))
        .order_by(wanted.id)
    )
    return rows.all()


async def users_on(db: AsyncSession, *, host_id: str) -> Sequence[str]:
    """Whose work is on the host."""
    held = tables.Placement
    rows = await db.scalars(
        select(held.user_id).where(held.host_id == host_id, held.released_at.is_(None)).distinct()
    )
    return rows.all()


async def admins(db: AsyncSession) -> Sequence[str]:
    """The active platform admins."""
    user = tables.User
    rows = await db.scalars(select(user.id).where(user.role == "admin", user.status == "active"))
    return rows.all()


async def count_live(db: AsyncSession, *, host_id: str) -> int:
    """How many placements of the host are live."""
    held = tables.Placement
    return (
        await db.scalar(
            select(func.count()).select_from(held).where(held.host_id == host_id, held.released_at.is_(None))
        )
        or 0
    )
