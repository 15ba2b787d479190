"""Homes that must leave a disk: asked for once, shown to one agent until that confirms it.

What asks is the owner of a home, or the clean-up after a dedication. From that moment nothing starts on it,
and the same place gets a home with another id: an agent that is late can never remove what is new.
"""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, NotFound
from remotegpu.types.agent import VolumeRemoval, VolumeRemovalAnswer
from remotegpu_server import holds
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.notifications import service as notifications
from remotegpu_server.volumes import queries

MOST_FAILURES = 5
"""So often an agent may fail to remove a home before it is not asked any more."""


async def request(
    db: AsyncSession, *, host_id: str, volume_id: str, actor: Actor, dedication_id: str | None = None
) -> bool:
    """Show the removal to the host's agent, again where it had given up. False: something runs on it.

    Lock order: host, volume.
    """
    await holds.lock_host(db, host_id=host_id)
    volume = await queries.lock(db, volume_id=volume_id)
    if volume is None or volume.removed_at is not None:
        return True
    if await db.scalar(select(queries.in_use()).where(tables.Volume.id == volume_id)):
        return False
    row = tables.VolumeRemoval
    made = upsert(row).values(
        id=tables.new_id("rmv"), volume_id=volume_id, host_id=host_id, dedication_id=dedication_id
    )
    await db.execute(
        made.on_conflict_do_update(
            index_elements=[row.volume_id],
            index_where=row.removed_at.is_(None),
            set_={"failures": 0, "dedication_id": func.coalesce(row.dedication_id, dedication_id)},
        )
    )
    if volume.removal_requested_at is None:
        await _change(db, volume_id, removal_requested_at=func.now(), measuring_host_id=None)
        await _record(db, volume, "removal_requested", "A home is to be removed from its disk.", actor=actor)
    await holds.bump_revision(db, host_id=host_id)
    return True


async def open_on(db: AsyncSession, *, volume_id: str) -> str | None:
    """The host that is asked to remove it already."""
    row = tables.VolumeRemoval
    host_id: str | None = await db.scalar(
        select(row.host_id).where(row.volume_id == volume_id, row.removed_at.is_(None))
    )
    return host_id


async def open_removals(db: AsyncSession, *, host_id: str) -> list[VolumeRemoval]:
    """Homes that a host's agent has to remove."""
    row, volume = tables.VolumeRemoval, tables.Volume
    rows = await db.execute(
        select(row.id, row.volume_id, volume.shared_home.is_not(None))
        .join(volume, volume.id == row.volume_id)
        .where(row.host_id == host_id, row.removed_at.is_(None), row.failures < MOST_FAILURES)
        .order_by(row.id)
    )
    return [VolumeRemoval(id=one, volume_id=volume_id, shared=shared) for one, volume_id, shared in rows]


async def answer(
    db: AsyncSession, *, host: tables.Host, removal_id: str, body: VolumeRemovalAnswer, actor: Actor
) -> None:
    """The agent's word about one home; the caller has fenced its session and locked its host."""
    row = tables.VolumeRemoval
    removal = await db.scalar(
        select(row).where(row.id == removal_id).with_for_update().execution_options(populate_existing=True)
    )
    if removal is None:
        raise NotFound("There is no such removal.")
    if removal.host_id != host.id:
        raise Forbidden("This home is on another host.")
    if removal.removed_at is not None:
        return
    if body.removed:
        await _removed(db, removal=removal, actor=actor)
        return
    await _update(db, removal, failures=removal.failures + 1, detail=body.detail)
    if removal.failures + 1 == MOST_FAILURES:
        await _given_up(db, removal=removal, host=host, detail=body.detail, actor=actor)
    await holds.bump_revision(db, host_id=host.id)


async def _removed(db: AsyncSession, *, removal: tables.VolumeRemoval, actor: Actor) -> None:
    await _update(db, removal, removed_at=func.now(), detail="")
    volume = await queries.lock(db, volume_id=removal.volume_id)
    assert volume is not None, "a removal has a volume"
    await _change(db, volume.id, removed_at=func.now())
    await _record(db, volume, "removed", "A home was removed from its disk.", actor=actor)
    notify(db, "queue")


async def _given_up(
    db: AsyncSession, *, removal: tables.VolumeRemoval, host: tables.Host, detail: str, actor: Actor
) -> None:
    """The owner is told; a dedication's clean-up tells the admins by itself."""
    volume = await queries.lock(db, volume_id=removal.volume_id)
    assert volume is not None, "a removal has a volume"
    message = f"The home could not be removed from {host.name}: {detail}"
    await _record(db, volume, "removal_failed", message, actor=actor)
    await notifications.tell(
        db,
        user_ids=[volume.owner_id],
        kind="volume.removal_failed",
        level="error",
        message=f"{message} Delete it again when that is mended.",
        subject_type="volume",
        subject_id=volume.id,
    )


async def _update(db: AsyncSession, removal: tables.VolumeRemoval, **values: object) -> None:
    row = tables.VolumeRemoval
    await db.execute(
        update(row).where(row.id == removal.id).values(**values).execution_options(synchronize_session=False)
    )


async def _change(db: AsyncSession, volume_id: str, **values: object) -> None:
    row = tables.Volume
    await db.execute(
        update(row).where(row.id == volume_id).values(**values).execution_options(synchronize_session=False)
    )


async def _record(db: AsyncSession, volume: tables.Volume, what: str, message: str, *, actor: Actor) -> None:
    owner = await db.get(tables.User, volume.owner_id)
    assert owner is not None, "a volume has an owner"
    await events.record(
        db,
        kind=f"volume.{what}",
        subject_type="volume",
        subject_id=volume.id,
        actor=actor,
        message=message,
        data={"host_id": volume.host_id, "shared_home": volume.shared_home, "size_bytes": volume.size_bytes},
        user_id=owner.id,
        customer_id=owner.customer_id,
    )
