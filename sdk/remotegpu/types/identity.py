"""Customers, users and the tokens they act with."""

# ruff: noqa: RUF012  pydantic copies mutable defaults; ruff does not see that Wire is a model

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints

from remotegpu.types.wire import Name, Text, Username, UtcTime, Wire, WireEnum
from remotegpu.types.workspaces import WorkspaceMembership

Password = Annotated[SecretStr, Field(min_length=10, max_length=256)]
"""At least ten characters; no composition rules (ASVS 6.2.1)."""


class UserRole(WireEnum):
    """What a user may do on the platform."""

    ADMIN = "admin"
    """Platform admin: everything."""
    OWNER = "owner"
    """Sees and manages everything of the own customer."""
    MEMBER = "member"
    """Sees and manages the own things only."""
    UNKNOWN = "unknown"


class AccountStatus(WireEnum):
    """Whether a customer or a user may act."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    UNKNOWN = "unknown"


class TokenKind(WireEnum):
    """Who acts with a token. The prefix of the secret says the same."""

    USER = "user"
    """``rgu_``: a person's session or API token."""
    SERVICE = "service"
    """``rgs_``: the hub; may act on behalf of a user."""
    AGENT = "agent"
    """``rga_``: one host's agent."""
    WORKLOAD = "workload"
    """``rgw_``: one generation of one environment; dies with it."""
    ENROLLMENT = "enrollment"
    """``rge_``: single use, joins one host."""
    UNKNOWN = "unknown"


class Scope(WireEnum):
    """What a token may do; a token never does more than its owner could."""

    ALL = "all"
    """Everything its owner may do."""
    READ = "read"
    """Only requests that change nothing."""
    ACT_AS = "act_as"
    """Service tokens only: name the acting user in ``X-RemoteGPU-On-Behalf-Of``."""
    METRICS = "metrics"
    """Read ``/metrics``."""
    NOTEBOOK = "notebook"
    """What a workload token holds: read the own environment, quota, capacity and events."""
    AGENT = "agent"
    """What an agent's credential holds: the agent protocol of its host."""
    UNKNOWN = "unknown"


class CustomerCreate(Wire):
    """A new tenant."""

    name: Name
    display_name: Text = ""


class CustomerUpdate(Wire):
    """Fields left out stay as they are."""

    display_name: Text | None = None


class Customer(Wire):
    """A tenant: users belong to exactly one."""

    id: str
    name: str
    display_name: str
    status: AccountStatus
    created_at: UtcTime


class UserCreate(Wire):
    """A new login."""

    username: Username
    customer: str | None = None
    """Id or name of the customer; left out, the customer of the caller."""
    display_name: Text = ""
    email: Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$", max_length=254)] | None = None
    role: UserRole = UserRole.MEMBER
    password: Password | None = None
    """Left out, the server makes a one-time password and answers with it once."""


class UserUpdate(Wire):
    """Fields left out stay as they are."""

    display_name: Text | None = None
    email: Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$", max_length=254)] | None = None
    role: UserRole | None = None


class User(Wire):
    """A login."""

    id: str
    username: str
    display_name: str
    email: str | None
    role: UserRole
    status: AccountStatus
    customer_id: str
    customer_name: str
    created_at: UtcTime


class UserCreated(Wire):
    """The new user, and the password the server made for it, shown this once."""

    user: User
    one_time_password: str | None


class PasswordChange(Wire):
    """Changing a password ends every other session of the user."""

    current_password: SecretStr
    new_password: Password


class Credentials(Wire):
    """What a person types."""

    username: Annotated[str, StringConstraints(max_length=128)]
    password: Annotated[SecretStr, Field(max_length=256)]


class Login(Credentials):
    """Sign in and get a session token."""

    expires_in_s: Annotated[int, Field(ge=60, le=30 * 86400)] = 12 * 3600


class TokenCreate(Wire):
    """A new API token of the caller."""

    name: Text
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)] = [Scope.ALL]
    expires_in_s: Annotated[int, Field(ge=60, le=366 * 86400)] = 90 * 86400


class Token(Wire):
    """A token without its secret."""

    id: str
    kind: TokenKind
    name: str
    scopes: list[Scope]
    created_at: UtcTime
    expires_at: UtcTime | None
    last_used_at: UtcTime | None


class TokenCreated(Wire):
    """The token with its secret, shown this once."""

    token: Token
    secret: str
    user: User


class Identity(Wire):
    """Who the caller is, as the server sees it."""

    user: User | None
    """``null`` for agents and for a service that acts for nobody."""
    workspaces: list[WorkspaceMembership]
    """Where the user is a member, the personal one first, and where the user is invited."""
    token: Token
    environment_id: str | None
    """Set for a workload's token: the environment it belongs to."""
    host_id: str | None
    """Set for an agent's credential: its host."""
