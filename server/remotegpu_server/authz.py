"""Who may do what: one function, actor + action + facts about the row -> allow, or a typed error.

A row that the actor may not see is answered as if it did not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto

from remotegpu.errors import AccountSuspended, Forbidden, NotFound, PasswordChangeRequired, Unauthorized


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who makes a request. For a service that acts for a user, the user's fields are set."""

    kind: str
    """A value of :class:`remotegpu.types.identity.TokenKind`."""
    token_id: str
    scopes: frozenset[str]
    name: str
    """As shown in events: user name, ``agent:<host>``, ``service:<name>`` or ``system``."""
    user_id: str | None = None
    username: str | None = None
    role: str | None = None
    customer_id: str | None = None
    workspaces: Mapping[str, str] = field(default_factory=dict)
    """Role by id of every workspace in which the user is an active member."""
    host_id: str | None = None
    environment_id: str | None = None
    suspended: str | None = None
    """Set when the hub acts for a suspended account, with the words of the refusal: it may look after what
    still runs, and nothing else."""

    service_name: str | None = None
    """``service:<name>``, when a service acts for the user that the other fields name."""
    must_change_password: bool = False
    """Signed in with a one-time password: may set another one, and nothing else."""

    @property
    def is_admin(self) -> bool:
        return self.role == "admin" and self.kind != "workload"

    @property
    def is_service(self) -> bool:
        """The hub, whether it acts for somebody or for itself."""
        return self.kind == "service"


SYSTEM = Actor(kind="system", token_id="", scopes=frozenset(), name="system")
"""The loops, as actor of events."""


class Action(StrEnum):
    """Everything that is ever asked for. Names that end in ``:read`` change nothing."""

    ME_READ = "me:read"
    PASSWORD_CHANGE = "password:change"  # noqa: S105
    SESSION_END = "session:end"
    AUTH_VERIFY = "auth:verify"
    TOKEN_READ = "token:read"  # noqa: S105
    TOKEN_READ_OF = "token:of:read"  # noqa: S105
    """Somebody's, whoever asks."""
    TOKEN_CREATE = "token:create"  # noqa: S105
    TOKEN_REVOKE = "token:revoke"  # noqa: S105
    PROFILE_CHANGE = "profile:change"
    CUSTOMER_LIST = "customer:list:read"
    CUSTOMER_READ = "customer:read"
    CUSTOMER_WRITE = "customer:write"
    USER_LIST = "user:list:read"
    USER_READ = "user:read"
    USER_CREATE = "user:create"
    USER_WRITE = "user:write"
    HOST_READ = "host:read"
    HOST_WRITE = "host:write"
    DEDICATION_READ = "dedication:read"
    DEDICATION_WRITE = "dedication:write"
    GPU_READ = "gpu:read"
    CAPACITY_READ = "capacity:read"
    IMAGE_READ = "image:read"
    IMAGE_WRITE = "image:write"
    QUOTA_READ = "quota:read"
    """The own limits."""
    QUOTA_READ_OF = "quota:of:read"
    """The limits of a given user, workspace or customer."""
    QUOTA_WRITE = "quota:write"
    SSH_KEY_READ = "ssh_key:read"
    SSH_KEY_WRITE = "ssh_key:write"
    QUOTA_REQUEST_LIST = "quota_request:list:read"
    QUOTA_REQUEST_READ = "quota_request:read"
    QUOTA_REQUEST_CREATE = "quota_request:create"
    """For the user, workspace or customer that the row is."""
    QUOTA_REQUEST_DECIDE = "quota_request:decide"
    QUOTA_REQUEST_WITHDRAW = "quota_request:withdraw"
    SETTING_READ = "setting:read"
    SETTING_WRITE = "setting:write"
    USAGE_READ = "usage:read"
    """Of a customer, or of all."""
    USAGE_READ_OWN = "usage:own:read"
    QUOTA_POLICY_READ = "quota:policy:read"
    QUOTA_POLICY_WRITE = "quota:policy:write"
    PLACEMENT_EXPLAIN = "placement:explain:read"
    QUEUE_ACCURACY = "queue:accuracy:read"
    RESERVATION_LIST = "reservation:list:read"
    RESERVATION_READ = "reservation:read"
    RESERVATION_CREATE = "reservation:create"
    RESERVATION_CREATE_FOR_WORKSPACE = "reservation:workspace:create"
    RESERVATION_CREATE_FOR_CUSTOMER = "reservation:customer:create"
    """For all workspaces of a customer; also to give such a one back."""
    RESERVATION_CANCEL = "reservation:cancel"
    WORKSPACE_LIST = "workspace:list:read"
    WORKSPACE_READ = "workspace:read"
    WORKSPACE_CREATE = "workspace:create"
    WORKSPACE_JOIN = "workspace:join"
    """Answer an invitation."""
    WORKSPACE_ALLOW_IMAGES = "workspace:images"
    WORKSPACE_LIMIT = "workspace:limit"
    """Set how long what starts in it may run."""
    WORKSPACE_MANAGE = "workspace:manage"
    """Rename it, and add, change and remove members."""
    WORKSPACE_OWN = "workspace:own"
    """Archive, delete or hand it over, and what its admins may not do to each other."""
    WORKSPACE_USE = "workspace:use"
    """Put something new into it."""
    ENVIRONMENT_LIST = "environment:list:read"
    ENVIRONMENT_CREATE = "environment:create"
    ENVIRONMENT_READ = "environment:read"
    ENVIRONMENT_USAGE = "environment:usage:read"
    ENVIRONMENT_LOGS = "environment:logs:read"
    ENVIRONMENT_ACCESS = "environment:access:read"
    ENVIRONMENT_STOP = "environment:stop"
    ENVIRONMENT_WRITE = "environment:write"
    ENVIRONMENT_RELEASE = "environment:release"
    ENVIRONMENT_SAVE = "environment:save"
    """Make an image of it."""
    VOLUME_LIST = "volume:list:read"
    VOLUME_READ = "volume:read"
    VOLUME_DELETE = "volume:delete"
    TASK_LIST = "task:list:read"
    TASK_CREATE = "task:create"
    TASK_READ = "task:read"
    TASK_STOP = "task:stop"
    TASK_LOGS = "task:logs:read"
    """Its output and its artifacts."""
    """Also to run it again."""
    TASK_SCHEDULE_LIST = "task_schedule:list:read"
    TASK_SCHEDULE_CREATE = "task_schedule:create"
    TASK_SCHEDULE_READ = "task_schedule:read"
    TASK_SCHEDULE_WRITE = "task_schedule:write"
    EVENTS_READ = "events:read"
    NOTIFICATION_READ = "notification:read"
    NOTIFICATION_WRITE = "notification:write"
    ALERT_READ = "alert:read"
    """What is listed is what the caller may see."""
    ALERT_WRITE = "alert:write"
    ALERT_RULE_READ = "alert_rule:read"
    ALERT_RULE_WRITE = "alert_rule:write"
    WEBHOOK_LIST = "webhook:list:read"
    WEBHOOK_CREATE = "webhook:create"
    WEBHOOK_READ = "webhook:read"
    WEBHOOK_WRITE = "webhook:write"
    AUDIT_READ = "audit:read"
    AUDIT_VERIFY = "audit:verify:read"
    METRICS_READ = "metrics:read"
    AGENT_ENROLL = "agent:enroll"
    AGENT_REPORT = "agent:report"
    """The whole agent protocol of the own host."""


class _Who(Enum):
    """Kinds of rules."""

    ANY_TOKEN = auto()
    PERSON = auto()
    """A user, or the hub for one."""
    PERSON_OR_WORKLOAD = auto()
    ROW_OWNER = auto()
    """The user the row belongs to, the owners of its customer, admins. What lives in a workspace belongs to
    its user only while the user is an active member there."""
    ROW_READER = auto()
    """The same, and every member of the row's workspace."""
    ROW_READER_OR_WORKLOAD = auto()
    """The same, and the workload whose environment the row is."""
    ROW_WRITER = auto()
    """Row owners, and the members of the row's workspace that are more than viewers."""
    ROW_READER_OR_OWN_WORKLOAD = auto()
    """Row readers, and the workloads of the row's user."""
    ROW_WRITER_OR_OWN_WORKLOAD = auto()
    WORKSPACE_MANAGER = auto()
    """Owner and admins of the workspace, owners of its customer, platform admins."""
    WORKSPACE_OWNER = auto()
    """The owner of the workspace, owners of its customer, platform admins."""
    WORKSPACE_WRITER = auto()
    """Members of the workspace that are more than viewers, and their workloads; neither admins nor customer
    owners as such."""
    CUSTOMER_OWNER = auto()
    """Owners of the row's customer, and admins; the row's own user sees it, but may not do this."""
    ADMIN = auto()
    SERVICE = auto()
    AGENT = auto()
    ENROLLMENT = auto()
    METRICS = auto()


_RULES: dict[Action, _Who] = {
    Action.ME_READ: _Who.ANY_TOKEN,
    Action.PASSWORD_CHANGE: _Who.PERSON,
    Action.SESSION_END: _Who.PERSON,
    Action.AUTH_VERIFY: _Who.SERVICE,
    Action.TOKEN_READ: _Who.PERSON,
    Action.TOKEN_READ_OF: _Who.ROW_OWNER,
    Action.TOKEN_CREATE: _Who.PERSON,
    Action.TOKEN_REVOKE: _Who.ROW_OWNER,
    Action.PROFILE_CHANGE: _Who.PERSON,
    Action.CUSTOMER_LIST: _Who.ADMIN,
    Action.CUSTOMER_READ: _Who.CUSTOMER_OWNER,
    Action.CUSTOMER_WRITE: _Who.ADMIN,
    Action.USER_LIST: _Who.CUSTOMER_OWNER,
    Action.USER_READ: _Who.ROW_OWNER,
    Action.USER_CREATE: _Who.CUSTOMER_OWNER,
    Action.USER_WRITE: _Who.CUSTOMER_OWNER,
    Action.HOST_READ: _Who.ADMIN,
    Action.HOST_WRITE: _Who.ADMIN,
    Action.DEDICATION_READ: _Who.PERSON,
    Action.DEDICATION_WRITE: _Who.ADMIN,
    Action.GPU_READ: _Who.PERSON,
    Action.CAPACITY_READ: _Who.PERSON_OR_WORKLOAD,
    Action.IMAGE_READ: _Who.PERSON,
    Action.IMAGE_WRITE: _Who.ADMIN,
    Action.QUOTA_READ: _Who.PERSON_OR_WORKLOAD,
    Action.QUOTA_READ_OF: _Who.ROW_READER,
    Action.QUOTA_WRITE: _Who.ADMIN,
    Action.SSH_KEY_READ: _Who.PERSON,
    Action.SSH_KEY_WRITE: _Who.PERSON,
    Action.QUOTA_REQUEST_LIST: _Who.PERSON,
    Action.QUOTA_REQUEST_READ: _Who.ROW_OWNER,
    Action.QUOTA_REQUEST_CREATE: _Who.ROW_WRITER,
    Action.QUOTA_REQUEST_DECIDE: _Who.CUSTOMER_OWNER,
    Action.QUOTA_REQUEST_WITHDRAW: _Who.ROW_OWNER,
    Action.SETTING_READ: _Who.PERSON,
    Action.SETTING_WRITE: _Who.ADMIN,
    Action.USAGE_READ: _Who.CUSTOMER_OWNER,
    Action.USAGE_READ_OWN: _Who.PERSON_OR_WORKLOAD,
    Action.QUOTA_POLICY_READ: _Who.ADMIN,
    Action.QUOTA_POLICY_WRITE: _Who.ADMIN,
    Action.PLACEMENT_EXPLAIN: _Who.PERSON,
    Action.QUEUE_ACCURACY: _Who.ADMIN,
    Action.RESERVATION_LIST: _Who.PERSON,
    Action.RESERVATION_READ: _Who.ROW_READER,
    Action.RESERVATION_CREATE: _Who.PERSON,
    Action.RESERVATION_CREATE_FOR_WORKSPACE: _Who.ROW_WRITER,
    Action.RESERVATION_CREATE_FOR_CUSTOMER: _Who.CUSTOMER_OWNER,
    Action.RESERVATION_CANCEL: _Who.ROW_WRITER,
    Action.ENVIRONMENT_LIST: _Who.PERSON,
    Action.ENVIRONMENT_CREATE: _Who.PERSON,
    Action.WORKSPACE_LIST: _Who.PERSON,
    Action.WORKSPACE_READ: _Who.ROW_READER,
    Action.WORKSPACE_CREATE: _Who.PERSON,
    Action.WORKSPACE_JOIN: _Who.PERSON,
    Action.WORKSPACE_ALLOW_IMAGES: _Who.CUSTOMER_OWNER,
    Action.WORKSPACE_LIMIT: _Who.CUSTOMER_OWNER,
    Action.WORKSPACE_MANAGE: _Who.WORKSPACE_MANAGER,
    Action.WORKSPACE_OWN: _Who.WORKSPACE_OWNER,
    Action.WORKSPACE_USE: _Who.WORKSPACE_WRITER,
    Action.ENVIRONMENT_READ: _Who.ROW_READER_OR_WORKLOAD,
    Action.ENVIRONMENT_USAGE: _Who.ROW_READER_OR_WORKLOAD,
    Action.ENVIRONMENT_LOGS: _Who.ROW_READER,
    Action.ENVIRONMENT_ACCESS: _Who.ROW_READER,
    Action.ENVIRONMENT_STOP: _Who.ROW_WRITER,
    Action.ENVIRONMENT_WRITE: _Who.ROW_WRITER,
    Action.ENVIRONMENT_RELEASE: _Who.ADMIN,
    Action.ENVIRONMENT_SAVE: _Who.ROW_WRITER,
    Action.VOLUME_LIST: _Who.PERSON,
    Action.VOLUME_READ: _Who.ROW_OWNER,
    Action.VOLUME_DELETE: _Who.ROW_OWNER,
    Action.TASK_LIST: _Who.PERSON_OR_WORKLOAD,
    Action.TASK_CREATE: _Who.PERSON_OR_WORKLOAD,
    Action.TASK_READ: _Who.ROW_READER_OR_OWN_WORKLOAD,
    Action.TASK_LOGS: _Who.ROW_READER_OR_OWN_WORKLOAD,
    Action.TASK_STOP: _Who.ROW_WRITER_OR_OWN_WORKLOAD,
    Action.TASK_SCHEDULE_LIST: _Who.PERSON,
    Action.TASK_SCHEDULE_CREATE: _Who.PERSON,
    Action.TASK_SCHEDULE_READ: _Who.ROW_READER,
    Action.TASK_SCHEDULE_WRITE: _Who.ROW_OWNER,
    Action.EVENTS_READ: _Who.PERSON_OR_WORKLOAD,
    Action.NOTIFICATION_READ: _Who.PERSON,
    Action.NOTIFICATION_WRITE: _Who.PERSON,
    Action.ALERT_READ: _Who.PERSON,
    Action.ALERT_WRITE: _Who.ADMIN,
    Action.ALERT_RULE_READ: _Who.ADMIN,
    Action.ALERT_RULE_WRITE: _Who.ADMIN,
    Action.WEBHOOK_LIST: _Who.PERSON,
    Action.WEBHOOK_CREATE: _Who.PERSON,
    Action.WEBHOOK_READ: _Who.ROW_OWNER,
    Action.WEBHOOK_WRITE: _Who.ROW_OWNER,
    Action.AUDIT_READ: _Who.CUSTOMER_OWNER,
    Action.AUDIT_VERIFY: _Who.ADMIN,
    Action.METRICS_READ: _Who.METRICS,
    Action.AGENT_ENROLL: _Who.ENROLLMENT,
    Action.AGENT_REPORT: _Who.AGENT,
}


_FOR_SUSPENDED = frozenset({Action.ENVIRONMENT_LIST, Action.ENVIRONMENT_READ, Action.ENVIRONMENT_STOP})
"""What the hub may do for a suspended account: see its servers, and stop them."""


_WITH_ONE_TIME_PASSWORD = frozenset({Action.ME_READ, Action.PASSWORD_CHANGE, Action.SESSION_END})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What a row belongs to."""

    user_id: str | None
    customer_id: str | None
    workspace_id: str | None
    environment_id: str | None

    @property
    def given(self) -> bool:
        return any((self.user_id, self.customer_id, self.workspace_id, self.environment_id))


def require(
    actor: Actor,
    action: Action,
    *,
    user_id: str | None = None,
    customer_id: str | None = None,
    workspace_id: str | None = None,
    environment_id: str | None = None,
    host_id: str | None = None,
    noun: str = "thing",
) -> None:
    """Return when ``actor`` may do ``action``; otherwise raise.

    Pass what the row belongs to: ``user_id`` and ``customer_id`` of its owner, the ``workspace_id`` it lives
    in, the ``environment_id`` if it is one, the ``host_id`` an agent writes to. ``noun`` stands in the text
    of :class:`NotFound`.
    """
    if actor.suspended is not None and action not in _FOR_SUSPENDED:
        raise AccountSuspended(actor.suspended)
    if actor.must_change_password and action not in _WITH_ONE_TIME_PASSWORD:
        raise PasswordChangeRequired("This account has a one-time password, which must be changed first.")
    who = _RULES[action]
    _require_scope(actor, action)
    if who is _Who.AGENT:
        if actor.kind != "agent" or (host_id is not None and host_id != actor.host_id):
            raise Forbidden("Only the agent of this host may do this.")
        return
    row = _Row(
        user_id=user_id, customer_id=customer_id, workspace_id=workspace_id, environment_id=environment_id
    )
    if not _fits(actor, who, row):
        if row.given and not _sees(actor, row):
            raise NotFound(f"There is no such {noun}.")
        raise Forbidden(_refusal(who))


def may(actor: Actor, action: Action, **row: str | None) -> bool:
    """The same question with a yes or a no."""
    try:
        require(actor, action, **row)  # type: ignore[arg-type]
    except (Forbidden, NotFound, Unauthorized):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which rows a list may hold: all, those of a customer, of a user and workspaces, of one environment."""

    everything: bool = False
    customer_id: str | None = None
    user_id: str | None = None
    workspace_ids: frozenset[str] = frozenset()
    environment_id: str | None = None


def visibility(actor: Actor) -> Visibility:
    """What the actor sees in lists of rows that belong to users."""
    if actor.kind == "workload":
        return Visibility(environment_id=actor.environment_id or "", user_id=actor.user_id)
    if actor.is_admin:
        return Visibility(everything=True)
    workspaces = frozenset(actor.workspaces)
    if actor.role == "owner":
        return Visibility(customer_id=actor.customer_id, workspace_ids=workspaces)
    return Visibility(user_id=actor.user_id or "", workspace_ids=workspaces)


def _require_scope(actor: Actor, action: Action) -> None:
    if actor.scopes & {"all", "act_as"} or actor.kind in ("agent", "workload", "enrollment"):
        return
    if action is Action.METRICS_READ and "metrics" in actor.scopes:
        return
    if action in (Action.ME_READ, Action.SESSION_END):
        return
    if "read" in actor.scopes and action.endswith(":read"):
        return
    raise Forbidden(
        f"This token's scopes ({', '.join(sorted(actor.scopes))}) do not cover {action}.",
        hint="Make a token with a wider scope.",
    )


def _fits(actor: Actor, who: _Who, row: _Row) -> bool:
    person = actor.kind in ("user", "service") and actor.user_id is not None
    workload = actor.kind == "workload"
    if who is _Who.ANY_TOKEN:
        return True
    if who is _Who.SERVICE:
        return actor.kind == "service" and "act_as" in actor.scopes
    if who is _Who.ENROLLMENT:
        return actor.kind == "enrollment"
    if who is _Who.METRICS:
        return "metrics" in actor.scopes or actor.is_admin
    if who is _Who.PERSON:
        return person
    if who is _Who.PERSON_OR_WORKLOAD:
        return person or workload
    if who is _Who.ADMIN:
        return person and actor.is_admin
    if workload:
        return _fits_workload(actor, who, row)
    return person and _fits_person(actor, who, row)


def _fits_workload(actor: Actor, who: _Who, row: _Row) -> bool:
    if who in _OWN_WORKLOAD:
        return _is_own(actor, row)
    if who is _Who.WORKSPACE_WRITER:  # what it may put there is a question of its own
        return actor.workspaces.get(row.workspace_id or "") in _WRITERS
    of_its_own = row.environment_id is not None and row.environment_id == actor.environment_id
    return who is _Who.ROW_READER_OR_WORKLOAD and of_its_own


_OWN_WORKLOAD = frozenset({_Who.ROW_READER_OR_OWN_WORKLOAD, _Who.ROW_WRITER_OR_OWN_WORKLOAD})
_READERS = frozenset({_Who.ROW_READER, _Who.ROW_READER_OR_WORKLOAD, _Who.ROW_READER_OR_OWN_WORKLOAD})
_ROW_WRITERS = frozenset({_Who.ROW_WRITER, _Who.ROW_WRITER_OR_OWN_WORKLOAD})


def _fits_person(actor: Actor, who: _Who, row: _Row) -> bool:
    role = actor.workspaces.get(row.workspace_id or "")
    if who is _Who.WORKSPACE_WRITER:
        return role in _WRITERS
    if actor.is_admin:
        return True
    owns_customer = actor.role == "owner" and row.customer_id is not None
    if owns_customer and row.customer_id == actor.customer_id:
        return True
    if who is _Who.CUSTOMER_OWNER:
        return False
    if who is _Who.WORKSPACE_OWNER:
        return role == "owner"
    if who is _Who.WORKSPACE_MANAGER:
        return role in ("owner", "admin")
    if who in _ROW_WRITERS and row.workspace_id is not None:
        return role in _WRITERS
    if _is_own(actor, row):
        return True
    return who in _READERS and role is not None


def _is_own(actor: Actor, row: _Row) -> bool:
    """What somebody made in a workspace stays behind there when the membership ends."""
    if row.user_id is None or row.user_id != actor.user_id:
        return False
    return row.workspace_id is None or row.workspace_id in actor.workspaces


_WRITERS = frozenset({"owner", "admin", "member"})
"""Workspace roles that change things; a viewer reads."""


def _sees(actor: Actor, row: _Row) -> bool:
    if actor.kind == "workload":
        return row.environment_id is not None and row.environment_id == actor.environment_id
    if actor.is_admin:
        return True
    if _is_own(actor, row):
        return True
    if row.workspace_id is not None and row.workspace_id in actor.workspaces:
        return True
    same_customer = row.customer_id is not None and row.customer_id == actor.customer_id
    return same_customer and (actor.role == "owner" or (row.user_id is None and row.workspace_id is None))


def _refusal(who: _Who) -> str:
    if who is _Who.ADMIN:
        return "Only platform admins may do this."
    if who is _Who.CUSTOMER_OWNER:
        return "Only owners of the customer and platform admins may do this."
    if who is _Who.WORKSPACE_OWNER:
        return "Only the owner of the workspace may do this."
    if who is _Who.WORKSPACE_MANAGER:
        return "Only the owner and the admins of the workspace may do this."
    if who is _Who.WORKSPACE_WRITER or who in _ROW_WRITERS:
        return "Viewers of a workspace may look, and nothing else."
    if who is _Who.SERVICE:
        return "Only a service token may do this."
    if who is _Who.ENROLLMENT:
        return "This needs an enrolment token."
    if who is _Who.METRICS:
        return "This needs the scope metrics."
    return "This token may not do this."
