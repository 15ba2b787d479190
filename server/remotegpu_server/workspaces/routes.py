"""Workspaces and their members."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.wire import Page
from remotegpu.types.workspaces import (
    Workspace,
    WorkspaceCreate,
    WorkspaceMember,
    WorkspaceMemberAdd,
    WorkspaceMemberUpdate,
    WorkspaceTransfer,
    WorkspaceUpdate,
)
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router
from remotegpu_server.workspaces import deletion, members, service

router = api_router("workspaces")


@router.get("/v1/workspaces", summary="List workspaces")
async def list_workspaces(
    db: Db,
    caller: Caller,
    mine: Annotated[bool, Query(description="Only those the caller is a member of.")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Workspace]:
    """Newest first. Owners see those of their customer, admins all."""
    return await service.list_workspaces(db, actor=caller, mine=mine, limit=limit, cursor=cursor)


@router.post("/v1/workspaces", status_code=201, summary="Make a workspace", dependencies=[IDEMPOTENT])
async def create_workspace(body: WorkspaceCreate, db: Db, caller: Caller) -> Workspace:
    """A team workspace; the caller is its owner."""
    return await service.create_workspace(db, actor=caller, body=body)


@router.get("/v1/workspaces/{workspace}", summary="Get a workspace")
async def get_workspace(workspace: str, db: Db, caller: Caller) -> Workspace:
    """404 for strangers, and for suspended members."""
    return await service.get_workspace(db, actor=caller, workspace_id=workspace)


@router.patch("/v1/workspaces/{workspace}", summary="Change a workspace")
async def update_workspace(workspace: str, body: WorkspaceUpdate, db: Db, caller: Caller) -> Workspace:
    """Fields left out stay as they are."""
    return await service.update_workspace(db, actor=caller, workspace_id=workspace, body=body)


@router.delete("/v1/workspaces/{workspace}", status_code=204, summary="Delete a workspace")
async def delete_workspace(workspace: str, db: Db, caller: Caller) -> None:
    """With its members and ended environments. 409 while something runs or waits in it."""
    await deletion.delete_workspace(db, actor=caller, workspace_id=workspace)


@router.post("/v1/workspaces/{workspace}:archive", summary="Archive a workspace")
async def archive_workspace(workspace: str, db: Db, caller: Caller) -> Workspace:
    """Members look at it; nothing starts in it. 409 while something runs or waits in it."""
    return await service.archive_workspace(db, actor=caller, workspace_id=workspace)


@router.post("/v1/workspaces/{workspace}:restore", summary="Restore an archived workspace")
async def restore_workspace(workspace: str, db: Db, caller: Caller) -> Workspace:
    """409 when its name was given away meanwhile."""
    return await service.restore_workspace(db, actor=caller, workspace_id=workspace)


@router.post("/v1/workspaces/{workspace}:transfer", summary="Hand a workspace over")
async def transfer_workspace(workspace: str, body: WorkspaceTransfer, db: Db, caller: Caller) -> Workspace:
    """Another active member becomes the owner; the owner until now becomes an admin of it."""
    return await service.transfer_workspace(db, actor=caller, workspace_id=workspace, body=body)


@router.post("/v1/workspaces/{workspace}:join", status_code=204, summary="Accept an invitation")
async def join_workspace(workspace: str, db: Db, caller: Caller) -> None:
    """For the invited user; `GET /v1/me` lists the invitations."""
    await members.answer_invitation(db, actor=caller, workspace_id=workspace, accept=True)


@router.post("/v1/workspaces/{workspace}:decline", status_code=204, summary="Decline an invitation")
async def decline_workspace(workspace: str, db: Db, caller: Caller) -> None:
    """For the invited user."""
    await members.answer_invitation(db, actor=caller, workspace_id=workspace, accept=False)


@router.get("/v1/workspaces/{workspace}/members", summary="List the members of a workspace")
async def list_members(
    workspace: str, db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None
) -> Page[WorkspaceMember]:
    """By user name."""
    return await members.list_members(db, actor=caller, workspace_id=workspace, limit=limit, cursor=cursor)


@router.post(
    "/v1/workspaces/{workspace}/members", status_code=201, summary="Add a member", dependencies=[IDEMPOTENT]
)
async def add_member(workspace: str, body: WorkspaceMemberAdd, db: Db, caller: Caller) -> WorkspaceMember:
    """Of the same customer, unless a platform admin adds it. 409 for somebody who is a member already."""
    return await members.add_member(db, actor=caller, workspace_id=workspace, body=body)


@router.patch("/v1/workspaces/{workspace}/members/{user}", summary="Change a member")
async def update_member(
    workspace: str, user: str, body: WorkspaceMemberUpdate, db: Db, caller: Caller
) -> WorkspaceMember:
    """Role, or suspension and its end; by user id or name. A suspended member sees nothing of it."""
    return await members.update_member(db, actor=caller, workspace_id=workspace, user=user, body=body)


@router.delete("/v1/workspaces/{workspace}/members/{user}", status_code=204, summary="Remove a member")
async def remove_member(workspace: str, user: str, db: Db, caller: Caller) -> None:
    """Members may leave; the owner hands the workspace over first."""
    await members.remove_member(db, actor=caller, workspace_id=workspace, user=user)
