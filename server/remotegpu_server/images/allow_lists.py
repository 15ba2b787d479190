"""The images that a workspace may use."""

from __future__ import annotations

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound
from remotegpu.types.images import WorkspaceImages, WorkspaceImagesUpdate
from remotegpu_server import authz
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.images import convert


async def get_allow_list(db: AsyncSession, *, actor: Actor, workspace_id: str) -> WorkspaceImages:
    """For members of the workspace, owners of its customer and admins."""
    await _workspace(db, actor=actor, action=Action.WORKSPACE_READ, workspace_id=workspace_id)
    return await _answer(db, workspace_id)


async def set_allow_list(
    db: AsyncSession, *, actor: Actor, workspace_id: str, body: WorkspaceImagesUpdate
) -> WorkspaceImages:
    """Replace it. What runs goes on; it counts from the next start on."""
    row, entry = tables.Image, tables.WorkspaceImage
    workspace = await _workspace(
        db, actor=actor, action=Action.WORKSPACE_ALLOW_IMAGES, workspace_id=workspace_id
    )
    before = await _answer(db, workspace_id)
    wanted = set(body.images or ())
    visible = (
        (row.visibility == "platform")
        | (row.customer_id == workspace.customer_id)
        | (row.workspace_id == workspace.id)
    )
    found = (await db.scalars(select(row).where(row.id.in_(wanted) | row.name.in_(wanted), visible))).all()
    missing = wanted - {one.id for one in found} - {one.name for one in found}
    if missing:
        raise NotFound(f"There is no image {sorted(missing)[0]!r}.")
    await db.execute(delete(entry).where(entry.workspace_id == workspace_id))
    if found:
        rows = [{"workspace_id": workspace_id, "image_id": one.id} for one in found]
        await db.execute(insert(entry), rows)
    after = await _answer(db, workspace_id)
    audit.note(db, old=[one.name for one in before.images], new=[one.name for one in after.images])
    await events.record(
        db,
        kind="workspace.images_changed",
        subject_type="workspace",
        subject_id=workspace_id,
        actor=actor,
        message=f"{actor.name} changed which images {workspace.name} may use.",
        customer_id=workspace.customer_id,
        workspace_id=workspace_id,
    )
    return after


async def _workspace(
    db: AsyncSession, *, actor: Actor, action: Action, workspace_id: str
) -> tables.Workspace:
    row = tables.Workspace
    found: tables.Workspace | None = await db.scalar(
        select(row).where(row.id == workspace_id, row.status != "deleted").with_for_update(read=True)
    )
    if found is None:
        raise NotFound("There is no such workspace.")
    authz.require(actor, action, customer_id=found.customer_id, workspace_id=found.id, noun="workspace")
    return found


async def _answer(db: AsyncSession, workspace_id: str) -> WorkspaceImages:
    row, entry = tables.Image, tables.WorkspaceImage
    rows = await db.scalars(
        select(row)
        .join(entry, entry.image_id == row.id)
        .where(entry.workspace_id == workspace_id)
        .order_by(row.name)
    )
    images = [convert.to_wire(one) for one in rows]
    return WorkspaceImages(restricted=bool(images), images=images)
