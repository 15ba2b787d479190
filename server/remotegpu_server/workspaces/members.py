"""Who works in a workspace. Guards: nobody grants or takes what is not below the own role."""

from __future__ import annotations

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, Invalid, NotFound, StateConflict
from remotegpu.types.wire import Page
from remotegpu.types.workspaces import (
    MemberStatus,
    WorkspaceMember,
    WorkspaceMemberAdd,
    WorkspaceMembership,
    WorkspaceMemberUpdate,
    WorkspaceRole,
)
from remotegpu_server import authz, pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.notifications import service as notifications
from remotegpu_server.workspaces import convert, queries
from remotegpu_server.workspaces.service import record, require_active

_GRANTABLE = (WorkspaceRole.ADMIN, WorkspaceRole.MEMBER, WorkspaceRole.VIEWER)


async def list_members(
    db: AsyncSession, *, actor: Actor, workspace_id: str, limit: int, cursor: str | None
) -> Page[WorkspaceMember]:
    """By user name, for every active member."""
    row = await db.scalar(
        select(tables.Workspace).where(
            tables.Workspace.id == workspace_id, tables.Workspace.status != "deleted"
        )
    )
    queries.allow(actor, Action.WORKSPACE_READ, row)
    query = queries.members(workspace_id)
    if cursor is not None:
        query = query.where(pagination.after((tables.User.username,), cursor))
    rows = (await db.execute(query.order_by(tables.User.username).limit(limit + 1))).all()
    found = [queries.Member(*one) for one in rows[:limit]]
    return Page[WorkspaceMember](
        items=[convert.member_to_wire(one) for one in found],
        next_cursor=pagination.encode([found[-1].user.username]) if len(rows) > limit else None,
    )


async def add_member(
    db: AsyncSession, *, actor: Actor, workspace_id: str, body: WorkspaceMemberAdd
) -> WorkspaceMember:
    """Let somebody in, or invite. Raises ``StateConflict`` for somebody who is a member already."""
    row = await _team(db, actor=actor, workspace_id=workspace_id)
    _require_grantable(body.role)
    user = await _addable(db, actor=actor, row=row, reference=body.user)
    member = tables.WorkspaceMember
    added = await db.scalar(
        insert(member)
        .values(
            workspace_id=row.id,
            user_id=user.id,
            role=str(body.role),
            status="invited" if body.invite else "active",
            joined_at=None if body.invite else func.now(),
        )
        .on_conflict_do_nothing()
        .returning(member)
    )
    if added is None:
        raise StateConflict(f"{user.username} is a member of {row.name} already.", data={"user_id": user.id})
    verb = "invited" if body.invite else "added"
    message = f"{actor.name} {verb} {user.username} as {body.role} of the workspace {row.name}."
    audit.note(db, new={"user": user.username, "role": str(body.role), "status": added.status})
    await record(db, actor, row, f"workspace.member_{verb}", message, data={"user_id": user.id})
    words = f"{actor.name} {verb} you to the workspace {row.name} as {body.role}."
    await _tell(db, row=row, user=user, kind=f"workspace.member_{verb}", message=words)
    return convert.member_to_wire(queries.Member(added, user))


async def update_member(
    db: AsyncSession, *, actor: Actor, workspace_id: str, user: str, body: WorkspaceMemberUpdate
) -> WorkspaceMember:
    """Another role, or a suspension and its end. The owner changes with a transfer only."""
    row = await _team(db, actor=actor, workspace_id=workspace_id)
    found = await queries.member(db, workspace_id=row.id, user=user)
    _require_below(actor, row, found)
    changes = _changes(body, found.membership)
    if changes:
        member = tables.WorkspaceMember
        old = {name: getattr(found.membership, name) for name in changes}
        await db.execute(
            update(member)
            .where(member.workspace_id == row.id, member.user_id == found.user.id)
            .values(changes)
            .execution_options(synchronize_session=False)
        )
        audit.note(db, old=old, new=changes | {"user": found.user.username})
        said = ", ".join(f"{name} {value}" for name, value in sorted(changes.items()))
        message = f"{actor.name} changed the membership of {found.user.username} in {row.name}: {said}."
        data: dict[str, object] = {"user_id": found.user.id, **changes}
        await record(db, actor, row, "workspace.member_changed", message, data=data)
        words = f"Your membership of the workspace {row.name} changed: {said}."
        await _tell(db, row=row, user=found.user, kind="workspace.member_changed", message=words)
    return convert.member_to_wire(await queries.member(db, workspace_id=row.id, user=found.user.id))


async def remove_member(db: AsyncSession, *, actor: Actor, workspace_id: str, user: str) -> None:
    """End a membership; members may end their own. What the member made in the workspace stays there."""
    leaves = user in (actor.user_id, actor.username)
    action = Action.WORKSPACE_READ if leaves else Action.WORKSPACE_MANAGE
    row = await queries.locked(db, actor=actor, action=action, workspace_id=workspace_id)
    found = await queries.member(db, workspace_id=row.id, user=user)
    if found.membership.role == "owner":
        raise StateConflict(
            f"{found.user.username} owns {row.name} and cannot be removed.", hint="Hand it over first."
        )
    if not leaves:
        _require_below(actor, row, found)
    await _end(db, row, found.user)
    verb = "left" if leaves else f"removed {found.user.username} from"
    audit.note(db, old={"user": found.user.username, "role": found.membership.role})
    message = f"{actor.name} {verb} the workspace {row.name}."
    await record(db, actor, row, "workspace.member_removed", message, data={"user_id": found.user.id})
    if not leaves:
        words = f"You are no member of the workspace {row.name} any more."
        await _tell(db, row=row, user=found.user, kind="workspace.member_removed", message=words)


async def answer_invitation(db: AsyncSession, *, actor: Actor, workspace_id: str, accept: bool) -> None:
    """The invited user comes in, or does not want to. 404 without an invitation."""
    authz.require(actor, Action.WORKSPACE_JOIN)
    workspace, member = tables.Workspace, tables.WorkspaceMember
    found = (
        await db.execute(
            select(workspace, member)
            .join(member, member.workspace_id == workspace.id)
            .where(
                workspace.id == workspace_id,
                workspace.status == "active",
                member.user_id == actor.user_id,
                member.status == "invited",
            )
            .with_for_update()
        )
    ).one_or_none()
    if found is None:
        raise NotFound("There is no such invitation.")
    row, membership = found
    if accept:
        membership.status = "active"
        membership.joined_at = func.now()
        await db.flush()
    else:
        await db.delete(membership)
    verb = "joined" if accept else "declined"
    words = (
        f"{actor.name} joined the workspace {row.name}." if accept else f"{actor.name} declined {row.name}."
    )
    await record(db, actor, row, f"workspace.member_{verb}", words, data={"user_id": actor.user_id})


async def of_user(db: AsyncSession, *, user_id: str) -> list[WorkspaceMembership]:
    """Every workspace of a user, invitations included, oldest first: one statement."""
    workspace, member = tables.Workspace, tables.WorkspaceMember
    rows = await db.execute(
        select(workspace.id, workspace.name, workspace.kind, workspace.status, member.role, member.status)
        .join(member, member.workspace_id == workspace.id)
        .where(
            member.user_id == user_id,
            member.status.in_(("active", "invited")),
            workspace.status != "deleted",
        )
        .order_by(workspace.created_at, workspace.id)
    )
    names = ("id", "name", "kind", "status", "role", "member_status")
    return [WorkspaceMembership.model_validate(dict(zip(names, row, strict=True))) for row in rows]


async def _team(db: AsyncSession, *, actor: Actor, workspace_id: str) -> tables.Workspace:
    row = await queries.locked(db, actor=actor, action=Action.WORKSPACE_MANAGE, workspace_id=workspace_id)
    if row.kind == "personal":
        raise StateConflict(
            "A personal workspace has one member.", hint="Make a team workspace to work together."
        )
    require_active(row)
    return row


def _require_grantable(role: WorkspaceRole) -> None:
    if role not in _GRANTABLE:
        raise Invalid("role: must be admin, member or viewer.", hint="Owners change with `:transfer`.")


def _require_below(actor: Actor, row: tables.Workspace, found: queries.Member) -> None:
    """Admins of a workspace manage members and viewers; its owner manages everybody else."""
    if found.membership.role == "owner":
        raise StateConflict(f"{found.user.username} owns {row.name}.", hint="Hand it over first.")
    owns = authz.may(actor, Action.WORKSPACE_OWN, customer_id=row.customer_id, workspace_id=row.id)
    if found.membership.role == "admin" and not owns:
        raise Forbidden("Only the owner of the workspace may change or remove its admins.")


async def _addable(db: AsyncSession, *, actor: Actor, row: tables.Workspace, reference: str) -> tables.User:
    user = await queries.user_named(db, reference)
    if user is None or (user.customer_id != row.customer_id and not actor.is_admin):
        raise NotFound(
            "There is no such user in this customer.", hint="A platform admin can add users of other ones."
        )
    if user.status != "active":
        raise StateConflict(f"The account {user.username} is {user.status}.")
    return user


def _changes(body: WorkspaceMemberUpdate, membership: tables.WorkspaceMember) -> dict[str, str]:
    if body.role is not None:
        _require_grantable(body.role)
    if body.status not in (None, MemberStatus.ACTIVE, MemberStatus.SUSPENDED):
        raise Invalid("status: must be active or suspended.")
    if body.status is not None and membership.status == "invited":
        raise StateConflict("The invitation was not answered yet.")
    wanted = {"role": body.role, "status": body.status}
    return {
        name: str(value)
        for name, value in wanted.items()
        if value is not None and str(value) != getattr(membership, name)
    }


async def _end(db: AsyncSession, row: tables.Workspace, user: tables.User) -> None:
    member = tables.WorkspaceMember
    await db.execute(delete(member).where(member.workspace_id == row.id, member.user_id == user.id))


async def _tell(
    db: AsyncSession, *, row: tables.Workspace, user: tables.User, kind: str, message: str
) -> None:
    await notifications.tell(
        db,
        user_ids=[user.id],
        kind=kind,
        level="info",
        message=message,
        subject_type="workspace",
        subject_id=row.id,
    )
