"""Rows to wire."""

from __future__ import annotations

from remotegpu.types.workspaces import (
    MemberStatus,
    Workspace,
    WorkspaceKind,
    WorkspaceMember,
    WorkspaceRole,
    WorkspaceStatus,
)
from remotegpu_server.workspaces.queries import Bundle, Member


def to_wire(bundle: Bundle) -> Workspace:
    """A workspace as answered to the user whose role the bundle holds."""
    row = bundle.workspace
    return Workspace(
        id=row.id,
        name=row.name,
        description=row.description,
        kind=WorkspaceKind(row.kind),
        status=WorkspaceStatus(row.status),
        customer_id=row.customer_id,
        owner=bundle.owner.username,
        owner_id=bundle.owner.id,
        role=WorkspaceRole(bundle.role) if bundle.role else None,
        members=bundle.members,
        environments=bundle.environments,
        max_lifetime_s=row.max_lifetime_s,
        created_at=row.created_at,
    )


def member_to_wire(found: Member) -> WorkspaceMember:
    """A member as other members see it: no address, no phone number."""
    membership, user = found
    return WorkspaceMember(
        user_id=user.id,
        username=user.username,
        display_name=user.display_name,
        role=WorkspaceRole(membership.role),
        status=MemberStatus(membership.status),
        created_at=membership.created_at,
        joined_at=membership.joined_at,
    )
