"""Workspaces: where environments and tasks live, and who works there."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from remotegpu.types.wire import CeilingS, Text, UtcTime, Wire, WireEnum

WorkspaceName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", strip_whitespace=True
    ),
]
"""For people; unique among the active team workspaces of a customer."""


class WorkspaceKind(WireEnum):
    """Whose it is."""

    PERSONAL = "personal"
    """One user's own, made with the account; nobody else can be a member."""
    TEAM = "team"
    UNKNOWN = "unknown"


class WorkspaceStatus(WireEnum):
    """Whether work can start in it."""

    ACTIVE = "active"
    ARCHIVED = "archived"
    """Members look at it; nothing starts in it and nothing is changed until it is restored."""
    UNKNOWN = "unknown"


class WorkspaceRole(WireEnum):
    """What a member may do."""

    OWNER = "owner"
    """Everything; every workspace has exactly one."""
    ADMIN = "admin"
    """Renames it and manages members, except the owner and other admins."""
    MEMBER = "member"
    """Starts, stops and changes what lives in it."""
    VIEWER = "viewer"
    """Looks, and nothing else."""
    UNKNOWN = "unknown"


class MemberStatus(WireEnum):
    """Whether a membership counts."""

    ACTIVE = "active"
    INVITED = "invited"
    """Asked to join, and sees nothing of it before that."""
    SUSPENDED = "suspended"
    """As if it were no member, until somebody who manages it says otherwise."""
    UNKNOWN = "unknown"


class WorkspaceCreate(Wire):
    """A new team workspace; whoever makes it is its owner."""

    name: WorkspaceName
    description: Text = ""


class WorkspaceUpdate(Wire):
    """Fields left out stay as they are."""

    name: WorkspaceName | None = None
    description: Text | None = None
    max_lifetime_s: CeilingS | None = None
    """What starts in it runs so long at most; 0: no ceiling of its own again. For owners of the customer."""


class Workspace(Wire):
    """A workspace."""

    id: str
    name: str
    description: str
    kind: WorkspaceKind
    status: WorkspaceStatus
    customer_id: str
    owner: str
    """User name."""
    owner_id: str
    role: WorkspaceRole | None
    """The caller's; ``null`` for somebody who manages it from outside."""
    members: int
    """Active ones."""
    environments: int
    """Those that are not deleted."""
    max_lifetime_s: float | None
    """What starts in it runs so long at most; ``null``: it sets no ceiling."""
    created_at: UtcTime


class WorkspaceMember(Wire):
    """One user's part in a workspace; nothing private of the user."""

    user_id: str
    username: str
    display_name: str
    role: WorkspaceRole
    status: MemberStatus
    created_at: UtcTime
    joined_at: UtcTime | None


class WorkspaceMemberAdd(Wire):
    """A new member."""

    user: str
    """Id or name; of the same customer, unless a platform admin adds it."""
    role: WorkspaceRole = WorkspaceRole.MEMBER
    invite: bool = False
    """The user has to accept first."""


class WorkspaceMemberUpdate(Wire):
    """Fields left out stay as they are. The role ``owner`` changes hands with ``:transfer`` only."""

    role: WorkspaceRole | None = None
    status: MemberStatus | None = None


class WorkspaceTransfer(Wire):
    """Hand a workspace over; its owner until now becomes an admin of it."""

    user: str
    """Id or name of an active member."""


class WorkspaceMembership(Wire):
    """A workspace of the caller."""

    id: str
    name: str
    kind: WorkspaceKind
    status: WorkspaceStatus
    role: WorkspaceRole
    member_status: MemberStatus
