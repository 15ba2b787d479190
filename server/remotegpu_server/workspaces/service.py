"""Workspaces and their members."""

from __future__ import annotations

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables


async def make_personal(db: AsyncSession, *, user_id: str, customer_id: str, username: str) -> None:
    """The workspace that every user has from the start, in the transaction that makes the user."""
    workspace_id = tables.new_id("wsp")
    await db.execute(
        insert(tables.Workspace).values(
            id=workspace_id, customer_id=customer_id, name=username, kind="personal", personal_of=user_id
        )
    )
    await db.execute(
        insert(tables.WorkspaceMember).values(
            workspace_id=workspace_id, user_id=user_id, role="owner", joined_at=func.now()
        )
    )


async def to_use(db: AsyncSession, *, actor: Actor, workspace: str | None) -> tables.Workspace:
    """The workspace in which the actor starts something: the given one, or its personal one.

    Locked against archiving until the transaction ends. Raises :class:`NotFound` and :class:`Forbidden`.
    """
    row = tables.Workspace
    wanted = row.personal_of == actor.user_id if workspace is None else row.id == workspace
    found: tables.Workspace | None = await db.scalar(
        select(row)
        .where(wanted, row.status == "active")
        .with_for_update(read=True)
        .execution_options(populate_existing=True)
    )
    if found is None:
        raise NotFound("There is no such workspace.")
    authz.require(
        actor,
        Action.WORKSPACE_USE,
        customer_id=found.customer_id,
        workspace_id=found.id,
        noun="workspace",
    )
    return found
