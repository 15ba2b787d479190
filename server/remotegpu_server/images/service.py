"""The allow-list."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import ImageNotAllowed, NameTaken, NotFound
from remotegpu.types.images import Image, ImageCreate, ImageUpdate
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.images import convert


async def allowed(db: AsyncSession, *, image: str) -> tables.Image:
    """The active image of that id, name or reference. Raises :class:`ImageNotAllowed`."""
    row = tables.Image
    found = (
        await db.scalars(
            select(row)
            .where((row.id == image) | (row.name == image) | (row.reference == image))
            .order_by(row.status, (row.name != image), row.id)
        )
    ).first()
    if found is None:
        raise ImageNotAllowed(f"Image {image[:255]!r} is not on the allow-list.", data={"image": image})
    if found.status != "active":
        raise ImageNotAllowed(f"Image {found.name} was withdrawn.", data={"image": found.name})
    return found


async def list_images(db: AsyncSession, *, actor: Actor, limit: int, cursor: str | None) -> Page[Image]:
    """By name, withdrawn ones included."""
    authz.require(actor, Action.IMAGE_READ)
    row = tables.Image
    found = select(row).order_by(row.name).limit(limit + 1)
    if cursor is not None:
        found = found.where(row.name > cursor)
    rows = (await db.scalars(found)).all()
    return Page[Image](
        items=[convert.to_wire(one) for one in rows[:limit]],
        next_cursor=rows[limit - 1].name if len(rows) > limit else None,
    )


async def get_image(db: AsyncSession, *, actor: Actor, image: str) -> Image:
    """By id or name."""
    authz.require(actor, Action.IMAGE_READ)
    return convert.to_wire(await _found(db, image))


async def create_image(db: AsyncSession, *, actor: Actor, body: ImageCreate) -> Image:
    """Allow an image."""
    authz.require(actor, Action.IMAGE_WRITE)
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


async def update_image(db: AsyncSession, *, actor: Actor, image: str, body: ImageUpdate) -> Image:
    """Change an entry. A new reference without a digest is pinned anew by the first host that pulls it."""
    authz.require(actor, Action.IMAGE_WRITE)
    row = await _found(db, image)
    changes: dict[str, Any] = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if "digest" in body.model_fields_set:
        changes["digest"] = body.digest
    elif body.reference is not None and body.reference != row.reference:
        changes["digest"] = None
    if changes:
        changed = await db.scalar(
            update(tables.Image)
            .where(tables.Image.id == row.id)
            .values(**changes)
            .returning(tables.Image)
            .execution_options(populate_existing=True, synchronize_session=False)
        )
        assert changed is not None
        row = changed
        await _record(db, actor, row, "image.updated", f"Image {row.name} was changed.", changes)
    return convert.to_wire(row)


async def _found(db: AsyncSession, image: str) -> tables.Image:
    row = await db.scalar(
        select(tables.Image).where((tables.Image.id == image) | (tables.Image.name == image))
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
