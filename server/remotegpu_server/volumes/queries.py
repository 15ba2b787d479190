"""SQL of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables


@dataclass(frozen=True, slots=True)
class Found:
    """A volume, and what else is shown of it."""

    volume: tables.Volume
    owner: str
    customer_id: str
    host_name: str | None
    in_use: bool
    removal_detail: str


def in_use() -> ColumnElement[bool]:
    """Whether anything holds the volume of the enclosing query."""
    held = tables.Placement
    return (
        select(held.id)
        .where(held.volume_id == tables.Volume.id, held.released_at.is_(None))
        .correlate(tables.Volume)
        .exists()
    )


async def found(db: AsyncSession, *, ids: Sequence[str]) -> list[Found]:
    """Volumes in the order of ``ids``: one statement."""
    volume, owner, host, removal = tables.Volume, tables.User, tables.Host, tables.VolumeRemoval
    detail = func.coalesce(removal.detail, "")
    rows = await db.execute(
        select(volume, owner.username, owner.customer_id, host.name, in_use(), detail)
        .join(owner, owner.id == volume.owner_id)
        .outerjoin(host, host.id == volume.host_id)
        .outerjoin(removal, (removal.volume_id == volume.id) & removal.removed_at.is_(None))
        .where(volume.id.in_(ids))
        .execution_options(populate_existing=True)
    )
    by_id = {row[0].id: Found(*row) for row in rows}
    return [by_id[volume_id] for volume_id in ids if volume_id in by_id]


async def lock(db: AsyncSession, *, volume_id: str) -> tables.Volume | None:
    """The row, locked against starts on it. Its host is locked before."""
    row = tables.Volume
    wanted = select(row).where(row.id == volume_id).with_for_update()
    volume: tables.Volume | None = await db.scalar(wanted.execution_options(populate_existing=True))
    return volume
