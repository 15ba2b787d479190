"""Listing homes, and deleting one that nothing uses."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import InUse, NotFound, StateConflict
from remotegpu.types.volumes import Volume
from remotegpu.types.wire import Page
from remotegpu_server import authz, pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.notifications import service as notifications
from remotegpu_server.volumes import convert, queries, removals
from remotegpu_server.volumes.queries import Found


async def list_volumes(
    db: AsyncSession, *, actor: Actor, owner: str | None, host: str | None, limit: int, cursor: str | None
) -> Page[Volume]:
    """Those that are not removed and that the actor may see, oldest first."""
    authz.require(actor, Action.VOLUME_LIST)
    row, user, machine = tables.Volume, tables.User, tables.Host
    sees = authz.visibility(actor)
    query = select(row).join(user, user.id == row.owner_id).where(row.removed_at.is_(None))
    if sees.customer_id is not None:
        query = query.where(user.customer_id == sees.customer_id)
    elif not sees.everything:
        query = query.where(row.owner_id == sees.user_id)
    if owner is not None:
        query = query.where((user.username == owner) | (user.id == owner))
    if host is not None:
        query = query.join(machine, machine.id == row.host_id)
        query = query.where((machine.name == host) | (machine.id == host))
    rows, following = await pagination.page(
        db, query, key=(row.created_at, row.id), limit=limit, cursor=cursor
    )
    found = await queries.found(db, ids=[one.id for one in rows])
    return Page[Volume](items=[convert.to_wire(one) for one in found], next_cursor=following)


async def get_volume(db: AsyncSession, *, actor: Actor, volume_id: str) -> Volume:
    """One volume; 404 when it is another tenant's."""
    return convert.to_wire(await _visible(db, actor=actor, action=Action.VOLUME_READ, volume_id=volume_id))


async def delete_volume(db: AsyncSession, *, actor: Actor, volume_id: str) -> Volume:
    """Ask its host to remove it. Repeating this asks an agent again that has given up.

    Raises :class:`InUse` while something runs on it, :class:`StateConflict` where no host reaches it.
    """
    found = await _visible(db, actor=actor, action=Action.VOLUME_DELETE, volume_id=volume_id)
    if found.volume.removed_at is None:
        await _remove(db, actor=actor, found=found)
    (after,) = await queries.found(db, ids=[volume_id])
    return convert.to_wire(after)


async def _visible(db: AsyncSession, *, actor: Actor, action: Action, volume_id: str) -> Found:
    found = await queries.found(db, ids=[volume_id])
    if not found:
        raise NotFound("There is no such volume.")
    authz.require(
        actor,
        action,
        user_id=found[0].volume.owner_id,
        customer_id=found[0].customer_id,
        noun="volume",
    )
    return found[0]


async def _remove(db: AsyncSession, *, actor: Actor, found: Found) -> None:
    volume = found.volume
    host_id = await removals.open_on(db, volume_id=volume.id) or await _reached_from(db, volume=volume)
    if host_id is None:
        raise StateConflict(
            f"No host that reaches the shared root {volume.shared_home} is online.",
            hint="Try again when one is back.",
        )
    if not await removals.request(db, host_id=host_id, volume_id=volume.id, actor=actor):
        raise InUse(
            "Something runs on this home.",
            hint="Stop the environments that use it first: `remotegpu env list`.",
        )
    audit.note(db, resource_id=volume.id, owner=found.owner, size_bytes=volume.size_bytes)
    if actor.user_id != volume.owner_id:
        place = found.host_name or volume.shared_home
        await notifications.tell(
            db,
            user_ids=[volume.owner_id],
            kind="volume.removal_requested",
            level="warning",
            message=f"{actor.name} deleted your home on {place}.",
            subject_type="volume",
            subject_id=volume.id,
            dedupe_key=f"volume-removal:{volume.id}",
        )


async def _reached_from(db: AsyncSession, *, volume: tables.Volume) -> str | None:
    """The host that removes it: its own, or the first online one that mounts the shared root."""
    if volume.host_id is not None:
        return volume.host_id
    host = tables.Host
    found: str | None = await db.scalar(
        select(func.min(host.id)).where(
            host.shared_home == volume.shared_home,
            host.connection == "online",
            host.operational != "retired",
        )
    )
    return found
