"""SQL of workspaces that is used more than once."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from remotegpu.errors import NotFound
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables


class Bundle(NamedTuple):
    """A workspace with everything that its wire type shows."""

    workspace: tables.Workspace
    owner: tables.User
    role: str | None
    """Of the asking user, when active."""
    members: int
    environments: int


class Member(NamedTuple):
    """A membership and its user."""

    membership: tables.WorkspaceMember
    user: tables.User


def bundles(user_id: str | None) -> Select[tables.Workspace, tables.User, str, int, int]:
    """All workspaces that are not deleted, as ``user_id`` sees them; narrow it with ``where``."""
    row, environment = tables.Workspace, tables.Environment
    owning, own, counted = (aliased(tables.WorkspaceMember) for _ in range(3))
    members = (
        select(func.count())
        .select_from(counted)
        .where(counted.workspace_id == row.id, counted.status == "active")
        .scalar_subquery()
    )
    environments = (
        select(func.count())
        .select_from(environment)
        .where(environment.workspace_id == row.id, environment.status != "deleted")
        .scalar_subquery()
    )
    return (
        select(row, tables.User, own.role, members, environments)
        .join(owning, and_(owning.workspace_id == row.id, owning.role == "owner"))
        .join(tables.User, tables.User.id == owning.user_id)
        .outerjoin(
            own, and_(own.workspace_id == row.id, own.user_id == (user_id or ""), own.status == "active")
        )
        .where(row.status != "deleted")
        .execution_options(populate_existing=True)
    )


async def one(db: AsyncSession, *, actor: Actor, workspace_id: str) -> Bundle:
    """One workspace as the actor sees it, without asking whether it may."""
    found = (await db.execute(bundles(actor.user_id).where(tables.Workspace.id == workspace_id))).one()
    return Bundle(*found)


async def locked(db: AsyncSession, *, actor: Actor, action: Action, workspace_id: str) -> tables.Workspace:
    """The workspace, locked against every other change and against new work, if the actor may do this."""
    row = tables.Workspace
    found: tables.Workspace | None = await db.scalar(
        select(row)
        .where(row.id == workspace_id, row.status != "deleted")
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    allow(actor, action, found)
    assert found is not None
    return found


def allow(actor: Actor, action: Action, row: tables.Workspace | None) -> None:
    """Raise unless the row is there and the actor may do ``action`` with it."""
    if row is None:
        raise NotFound("There is no such workspace.")
    authz.require(actor, action, customer_id=row.customer_id, workspace_id=row.id, noun="workspace")


def members(workspace_id: str) -> Select[tables.WorkspaceMember, tables.User]:
    """The memberships of a workspace with their users; accounts that were deleted have none."""
    member = tables.WorkspaceMember
    return (
        select(member, tables.User)
        .join(tables.User, tables.User.id == member.user_id)
        .where(member.workspace_id == workspace_id)
        .execution_options(populate_existing=True)
    )


async def member(db: AsyncSession, *, workspace_id: str, user: str) -> Member:
    """The membership of a user (id or name); raises :class:`NotFound`."""
    found = (
        await db.execute(
            members(workspace_id).where(or_(tables.User.id == user, tables.User.username == user))
        )
    ).first()
    if found is None:
        raise NotFound("There is no such member.")
    return Member(*found)


async def user_named(db: AsyncSession, reference: str) -> tables.User | None:
    """The account of this id or name."""
    row = tables.User
    found: tables.User | None = await db.scalar(
        select(row).where(or_(row.id == reference, row.username == reference))
    )
    return found
