"""Workspaces: made, changed, used, archived, handed over."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NameTaken, NotFound, StateConflict
from remotegpu.types.wire import Page
from remotegpu.types.workspaces import Workspace, WorkspaceCreate, WorkspaceTransfer, WorkspaceUpdate
from remotegpu_server import authz, pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.session import violated_constraint
from remotegpu_server.events import service as events
from remotegpu_server.notifications import service as notifications
from remotegpu_server.quotas import policies
from remotegpu_server.workspaces import convert, queries


async def make_personal(db: AsyncSession, *, user_id: str, customer_id: str, username: str) -> None:
    """The workspace that every user has from the start, in the transaction that makes the user."""
    workspace_id = tables.new_id("wsp")
    await db.execute(
        insert(tables.Workspace).values(
            id=workspace_id, customer_id=customer_id, name=username, kind="personal", personal_of=user_id
        )
    )
    await _make_owner(db, workspace_id=workspace_id, user_id=user_id)
    for subject_id in (user_id, workspace_id):
        await policies.apply(db, subject_id=subject_id)


async def to_use(db: AsyncSession, *, actor: Actor, workspace: str | None) -> tables.Workspace:
    """The workspace in which the actor starts something: the given one, or its personal one.

    Locked against archiving until the transaction ends. Raises :class:`NotFound`, :class:`Forbidden` and, for
    an archived one, :class:`StateConflict`.
    """
    row = tables.Workspace
    wanted = row.personal_of == actor.user_id if workspace is None else row.id == workspace
    found: tables.Workspace | None = await db.scalar(
        select(row)
        .where(wanted, row.status != "deleted")
        .with_for_update(read=True)
        .execution_options(populate_existing=True)
    )
    queries.allow(actor, Action.WORKSPACE_USE, found)
    assert found is not None
    require_active(found)
    return found


async def of_environment(db: AsyncSession, *, environment_id: str) -> tables.Workspace | None:
    """The workspace in which an environment lives, locked against archiving. Before the environment's lock:
    whoever deletes a workspace takes the two in this order.
    """
    row = tables.Workspace
    found: tables.Workspace | None = await db.scalar(
        select(row)
        .join(tables.Environment, tables.Environment.workspace_id == row.id)
        .where(tables.Environment.id == environment_id)
        .with_for_update(read=True, of=row)
        .execution_options(populate_existing=True)
    )
    return found


def require_active(row: tables.Workspace) -> None:
    """Refuse work and changes in an archived workspace."""
    if row.status != "active":
        raise StateConflict(f"The workspace {row.name} is archived.", hint="Its owner can restore it.")


async def list_workspaces(
    db: AsyncSession, *, actor: Actor, mine: bool, limit: int, cursor: str | None
) -> Page[Workspace]:
    """Newest first. ``mine`` leaves out what the caller sees only as an owner of its customer or as admin."""
    authz.require(actor, Action.WORKSPACE_LIST)
    row = tables.Workspace
    query = queries.bundles(actor.user_id)
    sees = authz.visibility(actor)
    if mine or not sees.everything:
        visible: ColumnElement[bool] = row.id.in_(frozenset(actor.workspaces))
        if not mine and sees.customer_id is not None:
            visible |= row.customer_id == sees.customer_id
        query = query.where(visible)
    if cursor is not None:
        query = query.where(pagination.before((row.created_at, row.id), cursor))
    rows = (await db.execute(query.order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1))).all()
    found = [queries.Bundle(*one) for one in rows[:limit]]
    last = found[-1].workspace if len(rows) > limit else None
    return Page[Workspace](
        items=[convert.to_wire(one) for one in found],
        next_cursor=pagination.encode([last.created_at, last.id]) if last else None,
    )


async def get_workspace(db: AsyncSession, *, actor: Actor, workspace_id: str) -> Workspace:
    """One workspace; 404 for whoever is no active member, and does not manage its customer."""
    found = (
        await db.execute(queries.bundles(actor.user_id).where(tables.Workspace.id == workspace_id))
    ).one_or_none()
    queries.allow(actor, Action.WORKSPACE_READ, found[0] if found else None)
    assert found is not None
    return convert.to_wire(queries.Bundle(*found))


async def create_workspace(db: AsyncSession, *, actor: Actor, body: WorkspaceCreate) -> Workspace:
    """A new team workspace in the caller's customer; the caller is its owner."""
    authz.require(actor, Action.WORKSPACE_CREATE)
    workspace_id = tables.new_id("wsp")
    try:
        async with db.begin_nested():
            row = await db.scalar(
                insert(tables.Workspace)
                .values(
                    id=workspace_id,
                    customer_id=actor.customer_id,
                    name=body.name,
                    description=body.description,
                    kind="team",
                )
                .returning(tables.Workspace)
            )
    except IntegrityError as error:
        raise _name_taken(error, body.name) from error
    assert row is not None
    assert actor.user_id is not None
    await _make_owner(db, workspace_id=workspace_id, user_id=actor.user_id)
    await policies.apply(db, subject_id=workspace_id)
    audit.note(db, resource_id=workspace_id, new={"name": body.name, "description": body.description})
    await record(db, actor, row, "workspace.created", f"{actor.name} made the workspace {row.name}.")
    return await _answer(db, actor, workspace_id)


async def update_workspace(
    db: AsyncSession, *, actor: Actor, workspace_id: str, body: WorkspaceUpdate
) -> Workspace:
    """Change what ``body`` names."""
    row = await queries.locked(db, actor=actor, action=Action.WORKSPACE_MANAGE, workspace_id=workspace_id)
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    if any(value is None for value in changes.values()):
        raise Invalid("A field of a workspace cannot be null.", hint="0 takes max_lifetime_s back.")
    require_active(row)
    if "max_lifetime_s" in changes:
        changes["max_lifetime_s"] = body.max_lifetime_s or None
        authz.require(actor, Action.WORKSPACE_LIMIT, customer_id=row.customer_id, noun="workspace")
    if "name" in changes:
        refuse_personal(row, "renamed")
    old = {name: getattr(row, name) for name in changes}
    if changes and old != changes:
        try:
            async with db.begin_nested():
                await db.execute(
                    update(tables.Workspace).where(tables.Workspace.id == row.id).values(changes)
                )
        except IntegrityError as error:
            raise _name_taken(error, str(body.name)) from error
        audit.note(db, old=old, new=changes)
        message = (
            f"{actor.name} changed {', '.join(sorted(changes))} of the workspace {old.get('name', row.name)}."
        )
        await record(db, actor, row, "workspace.changed", message, data={"changed": sorted(changes)})
    return await _answer(db, actor, workspace_id)


async def archive_workspace(db: AsyncSession, *, actor: Actor, workspace_id: str) -> Workspace:
    """Nothing starts in it any more; refused while something runs."""
    row = await queries.locked(db, actor=actor, action=Action.WORKSPACE_OWN, workspace_id=workspace_id)
    refuse_personal(row, "archived")
    if row.status == "active":
        await refuse_running(db, row)
        row.status = "archived"
        await db.flush()
        await record(db, actor, row, "workspace.archived", f"{actor.name} archived the workspace {row.name}.")
    return await _answer(db, actor, workspace_id)


async def restore_workspace(db: AsyncSession, *, actor: Actor, workspace_id: str) -> Workspace:
    """End of the archive; 409 when its name went to another one meanwhile."""
    row = await queries.locked(db, actor=actor, action=Action.WORKSPACE_OWN, workspace_id=workspace_id)
    if row.status == "archived":
        try:
            async with db.begin_nested():
                await db.execute(
                    update(tables.Workspace).where(tables.Workspace.id == row.id).values(status="active")
                )
        except IntegrityError as error:
            raise _name_taken(error, row.name) from error
        await record(db, actor, row, "workspace.restored", f"{actor.name} restored the workspace {row.name}.")
    return await _answer(db, actor, workspace_id)


async def transfer_workspace(
    db: AsyncSession, *, actor: Actor, workspace_id: str, body: WorkspaceTransfer
) -> Workspace:
    """Another active member becomes the owner; the owner until now becomes an admin of it."""
    row = await queries.locked(db, actor=actor, action=Action.WORKSPACE_OWN, workspace_id=workspace_id)
    refuse_personal(row, "handed over")
    heir = await queries.member(db, workspace_id=row.id, user=body.user)
    if heir.membership.status != "active" or heir.user.status != "active":
        raise StateConflict(f"{heir.user.username} is no active member.")
    if heir.membership.role != "owner":
        await hand_over(db, actor=actor, row=row, heir=heir)
    return await _answer(db, actor, workspace_id)


async def hand_over(db: AsyncSession, *, actor: Actor, row: tables.Workspace, heir: queries.Member) -> None:
    """Change the owner of a locked workspace; the unique index allows one at every moment."""
    member = tables.WorkspaceMember
    of_workspace = update(member).where(member.workspace_id == row.id)
    await db.execute(of_workspace.where(member.role == "owner").values(role="admin"))
    await db.execute(of_workspace.where(member.user_id == heir.user.id).values(role="owner"))
    message = f"{actor.name} made {heir.user.username} the owner of the workspace {row.name}."
    audit.note(db, new={"owner": heir.user.username})
    await record(db, actor, row, "workspace.transferred", message, data={"owner_id": heir.user.id})
    await notifications.tell(
        db,
        user_ids=[heir.user.id],
        kind="workspace.transferred",
        level="info",
        message=f"You own the workspace {row.name} now.",
        subject_type="workspace",
        subject_id=row.id,
    )


async def record(
    db: AsyncSession,
    actor: Actor,
    row: tables.Workspace,
    kind: str,
    message: str,
    *,
    data: dict[str, object] | None = None,
) -> None:
    """One event that the members of the workspace see."""
    await events.record(
        db,
        kind=kind,
        subject_type="workspace",
        subject_id=row.id,
        actor=actor,
        message=message,
        data=data,
        customer_id=row.customer_id,
        workspace_id=row.id,
    )


async def _make_owner(db: AsyncSession, *, workspace_id: str, user_id: str) -> None:
    await db.execute(
        insert(tables.WorkspaceMember).values(
            workspace_id=workspace_id, user_id=user_id, role="owner", joined_at=func.now()
        )
    )
    for subject_id in (user_id, workspace_id):
        await policies.apply(db, subject_id=subject_id)


async def _answer(db: AsyncSession, actor: Actor, workspace_id: str) -> Workspace:
    return convert.to_wire(await queries.one(db, actor=actor, workspace_id=workspace_id))


def refuse_personal(row: tables.Workspace, what: str) -> None:
    """``what`` cannot be done with somebody's own workspace."""
    if row.kind == "personal":
        raise StateConflict(f"A personal workspace cannot be {what}.")


async def refuse_running(db: AsyncSession, row: tables.Workspace) -> None:
    """Refuse while something runs or waits; what its host still has something of counts as running."""
    environment, held = tables.Environment, tables.Placement
    live = select(held.id).where(held.environment_id == environment.id, held.released_at.is_(None)).exists()
    names = list(
        await db.scalars(
            select(environment.name)
            .where(
                environment.workspace_id == row.id,
                environment.status.not_in(("stopped", "failed", "deleted")) | live,
            )
            .order_by(environment.name)
            .limit(5)
        )
    )
    names += await _live_tasks(db, row)
    if names:
        raise StateConflict(
            f"Something runs or waits in the workspace {row.name}: {', '.join(names)}.",
            hint="Stop it first.",
            data={"environments": names},
        )


async def _live_tasks(db: AsyncSession, row: tables.Workspace) -> list[str]:
    task, attempt, held = tables.Task, tables.Attempt, tables.Placement
    live = (
        select(held.id)
        .join(attempt, attempt.id == held.attempt_id)
        .where(attempt.task_id == task.id, held.released_at.is_(None))
        .exists()
    )
    found = await db.scalars(
        select(task.name)
        .where(task.workspace_id == row.id, task.finished_at.is_(None) | live)
        .order_by(task.name)
        .limit(5)
    )
    return list(found)


def _name_taken(error: IntegrityError, name: str) -> Exception:
    if violated_constraint(error) == "uq_workspaces_customer_name":
        return NameTaken(f"There is a workspace {name!r} already.", data={"name": name})
    if violated_constraint(error) == "fk_workspaces_customer_id_customers":
        return NotFound("There is no such customer.")
    return error
