"""The allow-list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import ImageNotAllowed, Invalid, NameTaken, NotFound
from remotegpu.types.images import Image, ImageCreate, ImageStatus, ImageUpdate
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.images import convert

_FACTS = {"category", "framework", "framework_version", "cuda_version", "python_version", "size_bytes"}


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """Which images a list holds; ``None``: whatever it is."""

    status: ImageStatus | None = None
    framework: str | None = None
    category: str | None = None
    search: str | None = None
    """Part of the name, the display name, the description or the framework."""

    def conditions(self) -> list[ColumnElement[bool]]:
        row = tables.Image
        found: list[ColumnElement[bool]] = []
        if self.status is not None:
            found.append(row.status == str(self.status))
        if self.framework is not None:
            found.append(func.lower(row.framework) == self.framework.lower())
        if self.category is not None:
            found.append(row.category == self.category)
        if self.search is not None:
            texts = (row.name, row.display_name, row.description, row.framework)
            found.append(or_(*(one.icontains(self.search, autoescape=True) for one in texts)))
        return found


async def allowed(db: AsyncSession, *, image: str, workspace: tables.Workspace) -> tables.Image:
    """The image of that id, name or reference, if it may start in the workspace.

    Raises :class:`ImageNotAllowed`; for one that the workspace does not see, in the words for one that is
    not there.
    """
    row, entry = tables.Image, tables.WorkspaceImage
    listed = select(entry.image_id).where(entry.workspace_id == workspace.id)
    found = (
        await db.execute(
            select(row, row.starts_until <= func.now(), ~listed.exists() | row.id.in_(listed))
            .where(
                (row.id == image) | (row.name == image) | (row.reference == image),
                (row.visibility == "platform")
                | (row.customer_id == workspace.customer_id)
                | (row.workspace_id == workspace.id),
            )
            .order_by(row.status, (row.name != image), row.id)
        )
    ).first()
    if found is None or found[0].status == "inactive":
        raise ImageNotAllowed(f"Image {image[:255]!r} is not on the allow-list.", data={"image": image})
    row_found, ended, listed_here = found
    if row_found.status == "withdrawn":
        raise ImageNotAllowed(f"Image {row_found.name} was withdrawn.", data={"image": row_found.name})
    if row_found.status == "deprecated" and ended:
        raise ImageNotAllowed(
            f"Image {row_found.name} is deprecated and does not start any more.",
            hint=row_found.deprecation_note or None,
            data={"image": row_found.name},
        )
    if not listed_here:
        raise ImageNotAllowed(
            f"Workspace {workspace.name} may not use image {row_found.name}.",
            hint="Its allow-list names the images that it may use.",
            data={"image": row_found.name},
        )
    allowed_image: tables.Image = row_found
    return allowed_image


def warning(image: tables.Image) -> str | None:
    """What to say to somebody who starts a deprecated image."""
    if image.status != "deprecated":
        return None
    until = f" and starts until {image.starts_until:%Y-%m-%d %H:%M} UTC" if image.starts_until else ""
    return f"Image {image.name} is deprecated{until}. {image.deprecation_note}".rstrip()


async def list_images(
    db: AsyncSession, *, actor: Actor, which: ImageFilter, limit: int, cursor: str | None
) -> Page[Image]:
    """By name, withdrawn ones included; what the actor does not see is not there."""
    authz.require(actor, Action.IMAGE_READ)
    row = tables.Image
    found = select(row).where(_visible(actor), *which.conditions()).order_by(row.name).limit(limit + 1)
    if cursor is not None:
        found = found.where(row.name > cursor)
    rows = (await db.scalars(found)).all()
    return Page[Image](
        items=[convert.to_wire(one) for one in rows[:limit]],
        next_cursor=rows[limit - 1].name if len(rows) > limit else None,
    )


def _visible(actor: Actor) -> ColumnElement[bool]:
    row = tables.Image
    if actor.is_admin:
        return true()
    return (row.status != "inactive") & (
        (row.visibility == "platform")
        | (row.customer_id == actor.customer_id)
        | row.workspace_id.in_(frozenset(actor.workspaces))
    )


async def get_image(db: AsyncSession, *, actor: Actor, image: str) -> Image:
    """By id or name; one that the actor does not see does not exist."""
    authz.require(actor, Action.IMAGE_READ)
    return convert.to_wire(await _found(db, image, _visible(actor)))


async def create_image(db: AsyncSession, *, actor: Actor, body: ImageCreate) -> Image:
    """Allow an image, for everybody, a customer or a workspace."""
    authz.require(actor, Action.IMAGE_WRITE)
    visible_to = await _visible_to(db, customer=body.customer, workspace=body.workspace)
    try:
        async with db.begin_nested():
            row = await db.scalar(
                insert(tables.Image)
                .values(
                    id=tables.new_id("img"),
                    name=body.name,
                    reference=body.reference,
                    display_name=body.display_name,
                    description=body.description,
                    digest=body.digest,
                    runtime=str(body.runtime),
                    command=body.command,
                    max_lifetime_s=body.max_lifetime_s,
                    **visible_to,
                    **body.model_dump(include=_FACTS),
                )
                .returning(tables.Image)
            )
    except IntegrityError as error:
        raise NameTaken(f"There is an image {body.name} already.") from error
    assert row is not None
    await _record(
        db, actor, row, "image.created", f"Image {row.name} is allowed.", {"reference": row.reference}
    )
    return convert.to_wire(row)


async def name_is_taken(db: AsyncSession, *, name: str) -> bool:
    """Whether any entry has it, also one that the asker does not see: names are unique for all."""
    return await db.scalar(select(tables.Image.id).where(tables.Image.name == name)) is not None


async def add_saved(
    db: AsyncSession, *, save: tables.ImageSave, reference: str, digest: str, actor: Actor
) -> str | None:
    """The entry for what was saved, as its base but for its workspace alone; ``None``: the name is taken.

    ``digest`` is the engine's id of it: no registry has it.
    """
    base = await _found(db, save.base_image_id)
    facts = {one: getattr(base, one) for one in _FACTS - {"size_bytes"}}
    row = await db.scalar(
        upsert(tables.Image)
        .values(
            id=tables.new_id("img"),
            name=save.image_name,
            reference=reference,
            display_name=save.display_name or save.image_name,
            description=save.description,
            digest=digest,
            local=True,
            runtime=base.runtime,
            command=base.command,
            visibility="workspace",
            workspace_id=save.workspace_id,
            size_bytes=save.progress_bytes,
            max_lifetime_s=base.max_lifetime_s,
            **facts,
        )
        .on_conflict_do_nothing(index_elements=[tables.Image.name])
        .returning(tables.Image)
    )
    if row is None:
        return None
    message = f"Image {row.name} was saved from an environment; workspace members may start it."
    await _record(db, actor, row, "image.created", message, {"reference": reference, "save_id": save.id})
    image_id: str = row.id
    return image_id


async def update_image(db: AsyncSession, *, actor: Actor, image: str, body: ImageUpdate) -> Image:
    """Change an entry. A new reference without a digest is pinned anew by the first host that pulls it; it is
    a registry's, whatever the entry was before.
    """
    authz.require(actor, Action.IMAGE_WRITE)
    row = await _found(db, image)
    elsewhere = body.reference is not None and body.reference != row.reference
    if row.local and not elsewhere and "digest" in body.model_fields_set:
        raise Invalid("A saved image is its content: another digest needs a registry's reference too.")
    changes: dict[str, Any] = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if "digest" in body.model_fields_set:
        changes["digest"] = body.digest
    elif elsewhere:
        changes["digest"] = None
    if elsewhere:
        changes["local"] = False
    if "max_lifetime_s" in changes:
        changes["max_lifetime_s"] = body.max_lifetime_s or None
    if changes.get("status", row.status) != "deprecated" and row.status == "deprecated":
        changes |= {"starts_until": None, "deprecation_note": ""}
    if changes:
        values = changes | ({"starts_until": body.starts_until} if body.starts_until else {})
        changed = await db.scalar(
            update(tables.Image)
            .where(tables.Image.id == row.id)
            .values(**values)
            .returning(tables.Image)
            .execution_options(populate_existing=True, synchronize_session=False)
        )
        assert changed is not None
        row = changed
        await _record(db, actor, row, "image.updated", f"Image {row.name} was changed.", changes)
    return convert.to_wire(row)


async def _visible_to(
    db: AsyncSession, *, customer: str | None, workspace: str | None
) -> dict[str, str | None]:
    if customer is not None and workspace is not None:
        raise Invalid("An image is for a customer or for a workspace, not for both.")
    if customer is not None:
        row = tables.Customer
        found = await db.scalar(select(row.id).where((row.id == customer) | (row.name == customer)))
        if found is None:
            raise NotFound("There is no such customer.")
        return {"visibility": "customer", "customer_id": found}
    if workspace is not None:
        space = tables.Workspace
        found = await db.scalar(select(space.id).where(space.id == workspace, space.status != "deleted"))
        if found is None:
            raise NotFound("There is no such workspace.")
        return {"visibility": "workspace", "workspace_id": found}
    return {"visibility": "platform"}


async def _found(db: AsyncSession, image: str, *which: ColumnElement[bool]) -> tables.Image:
    row = await db.scalar(
        select(tables.Image).where((tables.Image.id == image) | (tables.Image.name == image), *which)
    )
    if row is None:
        raise NotFound("There is no such image.")
    return row


async def _record(
    db: AsyncSession, actor: Actor, row: tables.Image, kind: str, message: str, data: dict[str, Any]
) -> None:
    await events.record(
        db, kind=kind, subject_type="image", subject_id=row.id, actor=actor, message=message, data=data
    )
