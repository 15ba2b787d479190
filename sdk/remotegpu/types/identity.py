"""Customers, users and the tokens they act with."""

# ruff: noqa: RUF012  pydantic copies mutable defaults; ruff does not see that Wire is a model

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints

from remotegpu.types.wire import Name, Text, Username, UtcTime, Wire, WireEnum
from remotegpu.types.workspaces import WorkspaceMembership

LEAST_PASSWORD, LONGEST_PASSWORD = 10, 256
"""Characters."""

Password = Annotated[SecretStr, Field(min_length=LEAST_PASSWORD, max_length=LONGEST_PASSWORD)]
"""At least ten characters; no composition rules (ASVS 6.2.1)."""


Email = Annotated[
    str, StringConstraints(pattern=r"""^[^@\s,;:<>()"\[\]\\]+@[^@\s,;:<>()"\[\]\\]+$""", max_length=254)
]
"""One address, without a name or what would make it several. Unique among accounts that are not deleted,
whatever its case.
"""

Phone = Annotated[str, StringConstraints(pattern=r"^\+?[0-9][0-9 ()./-]{2,31}$")]

AvatarUrl = Annotated[str, StringConstraints(pattern=r"^https://[^\s\"'<>\\]+$", max_length=2048)]

CustomerCode = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$")]
"""A cost centre, a contract number: whatever the organisation counts by."""


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
    DELETED = "deleted"
    """Users only: the name stays taken, and nothing of the account works any more."""
    UNKNOWN = "unknown"


class RunningWork(WireEnum):
    """What becomes of running environments when an account is suspended or deleted."""

    KEEP = "keep"
    STOP = "stop"
    """At once."""
    STOP_AFTER_GRACE = "stop_after_grace"
    """After ``grace_s`` seconds."""
    UNKNOWN = "unknown"


class Suspension(Wire):
    """How an account is suspended. Tokens end and queued requests are withdrawn in any case."""

    environments: RunningWork = RunningWork.KEEP
    grace_s: Annotated[int, Field(ge=0, le=30 * 86400)] = 3600
    """For ``stop_after_grace``."""


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
    company: Text = ""
    code: CustomerCode | None = None


class CustomerUpdate(Wire):
    """Fields left out stay as they are."""

    display_name: Text | None = None
    company: Text | None = None
    code: CustomerCode | None = None


class Customer(Wire):
    """A tenant: users belong to exactly one."""

    id: str
    name: str
    display_name: str
    company: str
    code: str | None
    """The organisation's own number of it, unique."""
    status: AccountStatus
    stop_environments_at: UtcTime | None
    """Of a suspended one: when what runs is stopped; ``null`` keeps it running."""
    users: int
    """Accounts that are not deleted."""
    environments: int
    """Those that hold a place on a host now."""
    gpus: int
    """In use now."""
    created_at: UtcTime


class UserCreate(Wire):
    """A new login."""

    username: Username
    customer: str | None = None
    """Id or name of the customer; left out, the customer of the caller."""
    display_name: Text = ""
    full_name: Text = ""
    email: Email | None = None
    phone: Phone | None = None
    role: UserRole = UserRole.MEMBER
    password: Password | None = None
    """Left out, the server makes a one-time password and answers with it once."""


class ProfileUpdate(Wire):
    """What people change of their own account. Fields left out stay as they are."""

    display_name: Text | None = None
    full_name: Text | None = None
    email: Email | None = None
    phone: Phone | None = None
    avatar_url: AvatarUrl | None = None


class UserUpdate(ProfileUpdate):
    """What admins and owners change. Fields left out stay as they are."""

    role: UserRole | None = None


class User(Wire):
    """A login."""

    id: str
    username: str
    display_name: str
    full_name: str
    email: str | None
    phone: str | None
    avatar_url: str | None
    role: UserRole
    status: AccountStatus
    customer_id: str
    customer_name: str
    password_change_required: bool
    """Holds a one-time password: until it is changed, the API allows nothing else."""
    stop_environments_at: UtcTime | None
    """Of a suspended or deleted one: when what runs is stopped; ``null`` keeps it running."""
    created_at: UtcTime


class UserCreated(Wire):
    """The new user, and the password the server made for it, shown this once."""

    user: User
    one_time_password: str | None


class PasswordChange(Wire):
    """Changing a password ends every other session of the user."""

    current_password: SecretStr
    new_password: Password


class PasswordResetRequest(Wire):
    """Somebody forgot a password."""

    user: Annotated[str, StringConstraints(min_length=1, max_length=254)]
    """User name or e-mail address."""


class PasswordReset(Wire):
    """The other end of a reset."""

    secret: Annotated[SecretStr, Field(max_length=128)]
    """From the mail, or from the link that an admin made."""
    new_password: Password


class PasswordResetLink(Wire):
    """For a person who cannot sign in, made by an admin or owner, shown this once."""

    secret: str
    url: str | None
    """Where the person sets the password; ``null`` where the server knows no such page."""
    expires_at: UtcTime


class Credentials(Wire):
    """What a person types."""

    username: Annotated[str, StringConstraints(max_length=128)]
    password: Annotated[SecretStr, Field(max_length=256)]


class Login(Credentials):
    """Sign in and get a session token."""

    expires_in_s: Annotated[int, Field(ge=60, le=30 * 86400)] = 12 * 3600


class SignInMethods(Wire):
    """How people sign in here. A name and a password always do."""

    oidc_issuer: str | None
    """Address of the identity provider; ``null``: none."""


class OidcStart(Wire):
    """A sign-in at the identity provider begins."""

    authorization_url: str
    """Where the browser goes."""
    state: str
    """Compare it with the one that comes back; also a cookie of the page that started."""


class OidcFinish(Wire):
    """What came back from the identity provider."""

    state: Annotated[str, StringConstraints(min_length=20, max_length=128)]
    code: Annotated[str, StringConstraints(min_length=1, max_length=4096)]


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
