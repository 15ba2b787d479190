"""Deleting a workspace, with what ended in it."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.environments import Reason
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.environments import queries as environments
from remotegpu_server.environments.service import stop
from remotegpu_server.workspaces import queries
from remotegpu_server.workspaces.service import record, refuse_personal, refuse_running


async def delete_workspace(db: AsyncSession, *, actor: Actor, workspace_id: str) -> None:
    """Forget it with its members and its ended environments; refused while something runs.

    The files of its environments stay in their owners' homes.
    """
    row = await queries.locked(db, actor=actor, action=Action.WORKSPACE_OWN, workspace_id=workspace_id)
    refuse_personal(row, "deleted")
    await refuse_running(db, row)
    await _delete_environments(db, actor=actor, row=row)
    member = tables.WorkspaceMember
    await db.execute(delete(member).where(member.workspace_id == row.id))
    row.status = "deleted"
    await db.flush()
    await record(db, actor, row, "workspace.deleted", f"{actor.name} deleted the workspace {row.name}.")


async def _delete_environments(db: AsyncSession, *, actor: Actor, row: tables.Workspace) -> None:
    wanted = tables.Environment
    ended = select(wanted.id).where(wanted.workspace_id == row.id, wanted.status != "deleted")
    for environment_id in await db.scalars(ended.order_by(wanted.id)):
        environment = await environments.lock(db, environment_id=environment_id)
        assert environment is not None
        await stop.end(
            db,
            environment=environment,
            desired="deleted",
            reason=Reason.REQUESTED,
            message="Deleted with its workspace.",
            actor=actor,
        )
