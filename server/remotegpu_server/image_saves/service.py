"""Saving environments as images: asking, what the agents must do, and what they say."""

from __future__ import annotations

from sqlalchemy import func, insert, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, NameTaken, NotFound, StateConflict
from remotegpu.types.agent import ImageSaveReport, ImageSaveRequest
from remotegpu.types.environments import EnvironmentStatus
from remotegpu.types.image_saves import ImageSave, ImageSaveCreate, ImageSaveReason
from remotegpu.types.wire import Page
from remotegpu_server import authz, holds
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.environments import queries as environment_queries
from remotegpu_server.environments.service import read
from remotegpu_server.hosts.service import joining as hosts
from remotegpu_server.image_saves import convert, lifecycle
from remotegpu_server.images import service as images
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import (
    IMAGE_SAVE_ALLOWED,
    IMAGE_SAVE_LIMIT_S,
    IMAGE_SAVE_MAX_BYTES,
)

_NO_SAVE = "There is no such save."
_LIVE_ENVIRONMENT = "uq_image_saves_live_environment"


async def save_image(
    db: AsyncSession, *, actor: Actor, environment_id: str, body: ImageSaveCreate
) -> ImageSave:
    """Ask the host's agent for it. One at a time for an environment; the unique indexes decide."""
    bundle = await read.visible(
        db, actor=actor, action=Action.ENVIRONMENT_SAVE, environment_id=environment_id
    )
    await _require_policy(db, actor=actor, environment=bundle.environment)
    environment = await environment_queries.lock(db, environment_id=environment_id)
    held = await environment_queries.live_placement(db, environment_id=environment_id)
    assert environment is not None, "environments are not removed while they are looked at"
    if bundle.image.runtime != "docker":
        raise StateConflict(
            "Its host runs processes without containers: there is nothing to make an image of.",
            hint="What is installed in the home is there at the next start.",
        )
    if held is None or environment.status != EnvironmentStatus.RUNNING or environment.desired != "running":
        raise StateConflict(
            f"{environment.name} is {environment.status}; only one that runs can be saved.",
            hint=f"`remotegpu env start {environment.name}` starts it.",
        )
    if await images.name_is_taken(db, name=body.name):
        raise NameTaken(f"There is an image {body.name} already.")
    assert actor.user_id is not None, "row writers are people"
    row = tables.ImageSave
    try:
        async with db.begin_nested():
            made = await db.scalar(
                insert(row)
                .values(
                    id=tables.new_id("sav"),
                    environment_id=environment.id,
                    generation=environment.generation,
                    host_id=held.host_id,
                    workspace_id=environment.workspace_id,
                    requested_by=actor.user_id,
                    image_name=body.name,
                    display_name=body.display_name,
                    description=body.description,
                    base_image_id=environment.image_id,
                    message=f"{environment.name} is to be saved as image {body.name}.",
                )
                .returning(row)
            )
    except IntegrityError as error:
        if _LIVE_ENVIRONMENT in str(error.orig):
            raise StateConflict(f"{environment.name} is being saved already.") from error
        raise NameTaken(f"Another save makes an image {body.name} already.") from error
    assert made is not None
    await holds.bump_revision(db, host_id=made.host_id)
    await lifecycle.record(db, made, what="requested", actor=actor)
    audit.note(db, save=made.id, image_name=made.image_name)
    return convert.to_wire(made)


async def _require_policy(db: AsyncSession, *, actor: Actor, environment: tables.Environment) -> None:
    """``images.save_allowed``: beside the right to change the environment."""
    allowed = await platform_settings.value(db, IMAGE_SAVE_ALLOWED)
    manages = authz.may(
        actor,
        Action.WORKSPACE_MANAGE,
        customer_id=environment.customer_id,
        workspace_id=environment.workspace_id,
    )
    if allowed == "members" or (allowed == "owners" and manages):
        return
    who = "nobody" if allowed != "owners" else "the workspace's owner and admins"
    raise Forbidden(
        f"On this platform {who} may save environments as images.",
        hint="An admin changes that with the setting images.save_allowed.",
    )


async def cancel(db: AsyncSession, *, actor: Actor, save_id: str) -> ImageSave:
    """Take a save back; its agent removes what it made of it. Again: as it is.

    Raises :class:`StateConflict` for one that is over.
    """
    row = tables.ImageSave
    found = (await db.execute(select(row.environment_id, row.host_id).where(row.id == save_id))).one_or_none()
    if found is None:
        raise NotFound(_NO_SAVE)
    environment_id, host_id = found
    try:
        await read.visible(db, actor=actor, action=Action.ENVIRONMENT_SAVE, environment_id=environment_id)
    except NotFound as error:
        raise NotFound(_NO_SAVE) from error
    await holds.lock_host(db, host_id=host_id)
    save = await lifecycle.locked(db, save_id=save_id)
    assert save is not None, "saves end with their host alone, and that is locked"
    if save.status in ("done", "failed"):
        raise StateConflict(
            f"The save as image {save.image_name} is {save.status} already.",
            hint="An admin withdraws an image that is in the catalogue." if save.status == "done" else None,
        )
    if save.status != "cancelled":
        audit.note(db, old={"status": save.status}, new={"status": "cancelled"})
        save = await lifecycle.cancel(db, save=save, actor=actor)
        await holds.bump_revision(db, host_id=host_id)
    return convert.to_wire(save)


async def list_image_saves(
    db: AsyncSession, *, actor: Actor, environment_id: str, limit: int, cursor: str | None
) -> Page[ImageSave]:
    """Newest first."""
    await read.visible(db, actor=actor, action=Action.ENVIRONMENT_READ, environment_id=environment_id)
    row = tables.ImageSave
    found = select(row).where(row.environment_id == environment_id)
    if cursor is not None:
        before = select(row.created_at).where(row.id == cursor).scalar_subquery()
        found = found.where(or_(row.created_at < before, (row.created_at == before) & (row.id < cursor)))
    rows = (await db.scalars(found.order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1))).all()
    return Page[ImageSave](
        items=[convert.to_wire(one) for one in rows[:limit]],
        next_cursor=rows[limit - 1].id if len(rows) > limit else None,
    )


def reference_of(save_id: str) -> str:
    """What the image is called on its host."""
    return f"remotegpu/saved:{save_id}"


async def open_saves(db: AsyncSession, *, host_id: str) -> list[ImageSaveRequest]:
    """What a host's agent has to save: only while the same start of the environment is to run."""
    row, wanted = tables.ImageSave, tables.Environment
    found = await db.execute(
        select(row.id, row.environment_id, row.generation)
        .join(wanted, (wanted.id == row.environment_id) & (wanted.generation == row.generation))
        .where(row.host_id == host_id, row.status.in_(lifecycle.LIVE), wanted.desired == "running")
        .order_by(row.created_at, row.id)
    )
    rows = found.all()
    max_bytes = await platform_settings.value(db, IMAGE_SAVE_MAX_BYTES) if rows else 0
    return [
        ImageSaveRequest(
            id=save_id,
            workload_id=environment_id,
            generation=generation,
            reference=reference_of(save_id),
            max_bytes=max_bytes,
        )
        for save_id, environment_id, generation in rows
    ]


async def report(
    db: AsyncSession, *, actor: Actor, host: tables.Host, save_id: str, body: ImageSaveReport
) -> None:
    """The agent's word about one save; the caller has fenced its session and locked the host.

    Raises :class:`StateConflict` where the server gave it up: the agent then removes what it made.
    """
    save = await lifecycle.locked(db, save_id=save_id)
    if save is None:
        raise NotFound(_NO_SAVE)
    if save.host_id != host.id:
        raise Forbidden("This save is another host's.")
    if save.status == "done" and body.image_id is not None:
        return
    if save.status not in lifecycle.LIVE:
        raise StateConflict(f"The save is {save.status}.")
    save = await lifecycle.move(db, save=save, to="saving", progress_bytes=body.progress_bytes)
    if body.reason is not None:
        message = body.detail or "The host could not save it."
        await lifecycle.fail(db, save=save, reason=ImageSaveReason(body.reason), message=message, actor=actor)
    elif body.image_id is not None:
        await _take_over(db, save=save, digest=body.image_id, actor=actor)


async def _take_over(db: AsyncSession, *, save: tables.ImageSave, digest: str, actor: Actor) -> None:
    reference = reference_of(save.id)
    image_id = await images.add_saved(db, save=save, reference=reference, digest=digest, actor=actor)
    if image_id is None:
        await lifecycle.fail(
            db,
            save=save,
            reason=ImageSaveReason.NAME_TAKEN,
            message=f"Somebody made an image {save.image_name} meanwhile. Save it under another name.",
            actor=actor,
        )
        return
    await hosts.add_image(db, host_id=save.host_id, reference=reference)
    await lifecycle.finish(db, save=save, image_id=image_id, actor=actor)


async def give_up(db: AsyncSession, *, save_id: str, actor: Actor) -> None:
    """Fail a save that cannot end well any more: its environment ended, or its time is over."""
    row, wanted = tables.ImageSave, tables.Environment
    host_id = await db.scalar(select(row.host_id).where(row.id == save_id))
    if host_id is None:
        return
    await holds.lock_host(db, host_id=host_id)
    save = await lifecycle.locked(db, save_id=save_id)
    if save is None or save.status not in lifecycle.LIVE:
        return
    goes_on = await db.scalar(
        select(wanted.id).where(
            wanted.id == save.environment_id,
            wanted.generation == save.generation,
            wanted.desired == "running",
            wanted.status.in_(["running", "unreachable"]),
        )
    )
    late = await db.scalar(select(func.extract("epoch", func.now() - save.created_at)))
    limit_s = await platform_settings.value(db, IMAGE_SAVE_LIMIT_S)
    if goes_on is None:
        reason, message = ImageSaveReason.ENVIRONMENT_STOPPED, "It was stopped before it was saved."
    elif float(late or 0) > limit_s:
        reason, message = ImageSaveReason.TOOK_TOO_LONG, f"It was not saved within {limit_s:.0f} s."
    else:
        return
    await lifecycle.fail(db, save=save, reason=reason, message=message, actor=actor)
    await holds.bump_revision(db, host_id=save.host_id)
