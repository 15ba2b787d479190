"""The one place that moves a dedication, and who its tenant is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound, StateConflict
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.db.transitions import DEDICATION_STATUS
from remotegpu_server.events import service as events
from remotegpu_server.notifications import service as notifications

LIVE = ("active", "grace", "cleaning")
_TRAIL = text("INSERT INTO capacity_changes (host_id) VALUES (:host_id)")


async def locked(db: AsyncSession, *, dedication_id: str) -> tables.Dedication:
    """The row, locked after its host, as everywhere. Raises :class:`NotFound`."""
    row, host = tables.Dedication, tables.Host
    host_id = await db.scalar(select(row.host_id).where(row.id == dedication_id))
    if host_id is None:
        raise NotFound("There is no such dedication.")
    await db.execute(select(host.id).where(host.id == host_id).with_for_update(key_share=True))
    found: tables.Dedication | None = await db.scalar(
        select(row).where(row.id == dedication_id).with_for_update().execution_options(populate_existing=True)
    )
    assert found is not None, "dedications are never deleted"
    return found


def of_tenant(dedication: tables.Dedication) -> ColumnElement[bool]:
    """Placements on the host that are the tenant's."""
    held = tables.Placement
    found = (held.host_id == dedication.host_id) & (held.customer_id == dedication.customer_id)
    if dedication.workspace_id is not None:
        found &= held.workspace_id == dedication.workspace_id
    return found


async def change(db: AsyncSession, dedication: tables.Dedication, **values: Any) -> tables.Dedication:
    """Columns of a locked row; whoever places next sees the host anew."""
    row = tables.Dedication
    changed: tables.Dedication | None = await db.scalar(
        update(row)
        .where(row.id == dedication.id)
        .values(**values)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert changed is not None, "the row is locked"
    await db.execute(_TRAIL, {"host_id": changed.host_id})
    notify(db, "queue")
    return changed


async def move(
    db: AsyncSession, *, dedication: tables.Dedication, to: str, message: str, actor: Actor, **values: Any
) -> tables.Dedication:
    """Write a status of a locked row with its event. Raises :class:`StateConflict` for an illegal move."""
    before = dedication.status
    if to not in DEDICATION_STATUS[before]:
        raise StateConflict(f"The dedication is {before}; it cannot become {to}.")
    changed = await change(db, dedication, status=to, **values)
    await record(db, changed, what=to, message=message, actor=actor)
    return changed


async def record(
    db: AsyncSession, dedication: tables.Dedication, *, what: str, message: str, actor: Actor
) -> None:
    """An event that the tenant's owners and the workspace see."""
    await events.record(
        db,
        kind=f"dedication.{what}",
        subject_type="dedication",
        subject_id=dedication.id,
        actor=actor,
        message=message,
        data={"host_id": dedication.host_id, "status": dedication.status},
        customer_id=dedication.customer_id,
        workspace_id=dedication.workspace_id,
    )


async def recipients(db: AsyncSession, dedication: tables.Dedication) -> Sequence[str]:
    """Who is told: owners of the customer, those who manage the workspace, and whose work is on the host."""
    user, member, held = tables.User, tables.WorkspaceMember, tables.Placement
    owners = select(user.id).where(
        user.customer_id == dedication.customer_id, user.role.in_(["owner", "admin"]), user.status == "active"
    )
    managers = select(member.user_id).where(
        member.workspace_id == dedication.workspace_id,
        member.role.in_(["owner", "admin"]),
        member.status == "active",
    )
    working = select(held.user_id).where(of_tenant(dedication), held.released_at.is_(None))
    return (await db.scalars(owners.union(managers, working))).all()


async def tell(
    db: AsyncSession, dedication: tables.Dedication, *, what: str, message: str, dedupe_key: str
) -> None:
    """A notification for each recipient, once under its key."""
    await notifications.tell(
        db,
        user_ids=await recipients(db, dedication),
        kind=f"dedication.{what}",
        level="warning",
        message=message,
        subject_type="dedication",
        subject_id=dedication.id,
        data={"host_id": dedication.host_id, "ends_at": dedication.ends_at.isoformat()},
        dedupe_key=dedupe_key,
    )
