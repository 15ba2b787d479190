"""Deleting an account: its row stays, so that its name is never given to somebody else."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import InUse, StateConflict
from remotegpu.types.identity import Suspension
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.customers import suspension
from remotegpu_server.db import tables
from remotegpu_server.users.service import end_account, find, keep_an_admin, record


async def delete_user(db: AsyncSession, actor: Actor, reference: str, policy: Suspension) -> None:
    """End the account for good. Raises ``InUse`` while it owns a team workspace. Repeating it is fine."""
    found = await find(db, actor, Action.USER_WRITE, reference, lock=True)
    user = found.user
    if user.id == actor.user_id:
        raise StateConflict("You cannot delete yourself.")
    if user.status == "deleted":
        return
    await keep_an_admin(db, user, becomes=None)
    await _refuse_owner(db, user)
    member = tables.WorkspaceMember
    await db.execute(delete(member).where(member.user_id == user.id, member.role != "owner"))
    user.password_hash = ""
    user.oidc_issuer = user.oidc_subject = None
    await db.flush()
    ended = await end_account(db, user, status="deleted", policy=policy)
    words = suspension.in_words(policy)
    audit.note(db, tokens_revoked=ended, new=policy.model_dump(mode="json"))
    message = f"{actor.name} deleted the account {user.username}; {ended} tokens ended, {words}."
    await record(db, actor, user, "user.deleted", message, data={"tokens_revoked": ended})


async def _refuse_owner(db: AsyncSession, user: tables.User) -> None:
    member, workspace = tables.WorkspaceMember, tables.Workspace
    owned = list(
        await db.scalars(
            select(workspace.name)
            .join(member, member.workspace_id == workspace.id)
            .where(
                member.user_id == user.id,
                member.role == "owner",
                workspace.kind == "team",
                workspace.status != "deleted",
            )
            .order_by(workspace.name)
            .limit(10)
        )
    )
    if owned:
        raise InUse(
            f"{user.username} owns the workspaces {', '.join(owned)}.",
            hint="Hand them over or delete them first.",
            data={"workspaces": owned},
        )
