"""Who may do what: an oracle of its own, written from the documents and not from ``authz.py``.

Every route has a row: a policy, and where one cell differs, the difference with its reason. A cell is

``+``  allowed: any answer that is not one of the others (also 409 or 422: the caller got past the guard)
``1``  401    ``3``  403    ``4``  404, as if the row did not exist
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .actors import ACTORS

_NOBODY = {"anonymous": "1", "expired": "1"}
_PEOPLE = (
    "self", "ws_admin", "ws_member", "ws_viewer", "colleague", "owner",
    "foreign_member", "foreign_owner", "admin", "hub_self",
)  # fmt: skip
_STRANGERS = ("colleague", "foreign_member", "foreign_owner")


def _policy(default: str, **cells: str) -> Mapping[str, str]:
    """``default`` for everybody with a working token; groups first, single actors override them."""
    found = dict.fromkeys(ACTORS, default) | _NOBODY
    people, strangers = cells.pop("people", None), cells.pop("strangers", None)
    if people:
        found |= dict.fromkeys(_PEOPLE, people)
    if strangers:
        found |= dict.fromkeys(_STRANGERS, strangers)
    return found | cells


PUBLIC = dict.fromkeys(ACTORS, "+")
"""Anybody, with or without a token."""
ANY_TOKEN = _policy("+")
"""Everybody who is known."""
PERSON = _policy("3", people="+")
"""Users about themselves or about what everybody sees; neither agents nor workloads."""
PERSON_OR_WORKLOAD = _policy("3", people="+", workload="+", foreign_workload="+")
"""The same, and notebooks."""
ADMIN = _policy("3", admin="+")
"""Platform admins."""
CUSTOMER_OWNER = _policy("3", owner="+", foreign_owner="+", admin="+")
"""Owners, in their own customer by what the list holds, and platform admins."""
ACCOUNT_READ = _policy("4", self="+", owner="+", admin="+", hub_self="+", agent="4", hub="4")
"""A user's row: the user, owners of the customer, admins; for everybody else it does not exist."""
ACCOUNT_WRITE = ACCOUNT_READ | {"self": "3", "hub_self": "3"}
"""The same, but not the user."""
ROW_READ = _policy("4", people="+", strangers="4")
"""What lives in a workspace: its members, owners of the customer, admins."""
ROW_READ_OR_WORKLOAD = ROW_READ | {"workload": "+"}
"""The same, and the notebook that the row is about."""
ROW_WRITE = ROW_READ | {"ws_viewer": "3"}
"""The same without viewers and without the notebook."""
TASK_READ = ROW_READ | {"workload": "+"}
"""What lives in a workspace, and the notebooks and tasks of its user, wherever it lives."""
TASK_WRITE = ROW_WRITE | {"workload": "+"}
"""The same without viewers."""
WORKSPACE_MANAGE = ROW_READ | {"ws_member": "3", "ws_viewer": "3"}
"""Owner and admins of the workspace, owners of the customer, platform admins."""
WORKSPACE_OWN = WORKSPACE_MANAGE | {"ws_admin": "3"}
"""The same without its admins."""
AGENT = _policy("3", agent="+", foreign_agent="+")
"""Agents, each for its own host: what they write names no host, the credential does."""
SERVICE = _policy("3", hub="+", hub_self="+")
"""The hub."""


@dataclass(frozen=True)
class Row:
    """One route. ``differs``: actor -> (cell, reason). The body is the example of its type in openapi.py
    unless ``body`` is given; ``query`` fills required parameters."""

    policy: Mapping[str, str]
    differs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)

    def expected(self) -> dict[str, str]:
        return dict(self.policy) | {actor: cell for actor, (cell, _) in self.differs.items()}


_NO_ARTIFACT = ("4", "the task has left nothing; who may see it is asked first")
_OWN_ENVIRONMENT = "the workload's own environment is visible to it, so it is told that it may not"
_ENVIRONMENT = {"workload": ("3", _OWN_ENVIRONMENT)}
_SEES_NO_CUSTOMER = ("4", "a notebook sees its own environment, and no customer")
_NO_CUSTOMER = dict.fromkeys(("workload", "foreign_workload"), _SEES_NO_CUSTOMER)

_OWN_KEYS = {
    actor: ("4", "keys are their user's alone; nobody else has a use for them, not even an admin")
    for actor in _PEOPLE
    if actor not in ("self", "hub_self")
}
_ALERT_OF_A_HOST = {
    actor: ("4", "it is about a host, which is nobody's but the admins'")
    for actor in _PEOPLE
    if actor != "admin"
}
_NOT_SET = dict.fromkeys(_PEOPLE, ("4", "nobody has set it"))
_NOBODY_ELSES = dict.fromkeys(
    (actor for actor in _PEOPLE if actor not in ("self", "hub_self")),
    ("4", "somebody else's does not exist, for admins neither"),
)

_ONLY_ITS_OWNER = ("3", "members of the workspace see it, but it runs as its owner")
_NOT_THEIR_SCHEDULE = dict.fromkeys(("ws_admin", "ws_member", "ws_viewer"), _ONLY_ITS_OWNER)
_NO_PROVIDER = dict.fromkeys(ACTORS, ("4", "no identity provider is configured in this world"))

ROUTES: dict[str, Row] = {
    "GET /healthz": Row(PUBLIC),
    "GET /readyz": Row(PUBLIC),
    "GET /metrics": Row(
        ADMIN,
        dict.fromkeys(("hub", "hub_self"), ("+", "scope metrics, with which the hub's token is made")),
    ),
    "GET /v1/prometheus/targets": Row(
        ADMIN,
        dict.fromkeys(("hub", "hub_self"), ("+", "scope metrics, with which the hub's token is made")),
    ),
    # Signing in
    "POST /v1/auth/login": Row(
        PUBLIC, dict.fromkeys(ACTORS, ("1", "the example's name and password are nobody's"))
    ),
    "POST /v1/auth/logout": Row(PERSON),
    "POST /v1/auth/verify": Row(
        SERVICE, dict.fromkeys(("hub", "hub_self"), ("1", "the example's password is nobody's"))
    ),
    "GET /v1/auth/methods": Row(PUBLIC),
    "POST /v1/auth/oidc:start": Row(PUBLIC, _NO_PROVIDER),
    "POST /v1/auth/oidc:finish": Row(PUBLIC, _NO_PROVIDER),
    "POST /v1/auth/password-reset": Row(PUBLIC),
    "POST /v1/auth/password-reset:finish": Row(PUBLIC),
    "GET /v1/me": Row(ANY_TOKEN),
    "PATCH /v1/me": Row(PERSON),
    "POST /v1/me/password": Row(
        PERSON,
        dict.fromkeys(_PEOPLE, ("1", "may ask; the current password in the body is wrong")),
        body={"current_password": "wrong", "new_password": "staple correct horse"},
    ),
    "GET /v1/tokens": Row(PERSON),
    "GET /v1/users/{user}/tokens": Row(ACCOUNT_READ),
    "POST /v1/tokens": Row(PERSON),
    "DELETE /v1/tokens/{token_id}": Row(ACCOUNT_READ),
    # Customers and users
    "GET /v1/customers": Row(ADMIN),
    "POST /v1/customers": Row(ADMIN),
    "GET /v1/customers/{customer}": Row(
        ACCOUNT_READ,
        dict.fromkeys(
            ("self", "hub_self", "ws_admin", "ws_member", "ws_viewer", "colleague"),
            ("3", "members know their customer by name; its counts and state are for its owners"),
        ),
    ),
    "GET /v1/customers/{customer}/metrics": Row(
        ACCOUNT_READ,
        dict.fromkeys(
            ("self", "hub_self", "ws_admin", "ws_member", "ws_viewer", "colleague"),
            ("3", "members know their customer by name; its counts and state are for its owners"),
        ),
    ),
    "PATCH /v1/customers/{customer}": Row(ADMIN),
    "POST /v1/customers/{customer}:suspend": Row(ADMIN),
    "POST /v1/customers/{customer}:resume": Row(ADMIN),
    "GET /v1/users": Row(CUSTOMER_OWNER, _NO_CUSTOMER),
    "POST /v1/users": Row(CUSTOMER_OWNER, _NO_CUSTOMER, body={"username": "newcomer"}),
    "GET /v1/users/{user}": Row(ACCOUNT_READ),
    "PATCH /v1/users/{user}": Row(ACCOUNT_WRITE),
    "DELETE /v1/users/{user}": Row(ACCOUNT_WRITE),
    "POST /v1/users/{user}:suspend": Row(ACCOUNT_WRITE),
    "POST /v1/users/{user}:resume": Row(ACCOUNT_WRITE),
    "POST /v1/users/{user}/password-resets": Row(ACCOUNT_WRITE),
    "POST /v1/users/{user}:reset-password": Row(ACCOUNT_WRITE),
    # Workspaces
    "GET /v1/workspaces": Row(PERSON),
    "POST /v1/workspaces": Row(PERSON),
    "GET /v1/workspaces/{workspace}": Row(ROW_READ),
    "GET /v1/workspaces/{workspace}/metrics": Row(ROW_READ),
    "PATCH /v1/workspaces/{workspace}": Row(WORKSPACE_MANAGE),
    "DELETE /v1/workspaces/{workspace}": Row(WORKSPACE_OWN),
    "POST /v1/workspaces/{workspace}:archive": Row(WORKSPACE_OWN),
    "POST /v1/workspaces/{workspace}:restore": Row(WORKSPACE_OWN),
    "POST /v1/workspaces/{workspace}:transfer": Row(WORKSPACE_OWN, body={"user": "ws_member"}),
    "POST /v1/workspaces/{workspace}:join": Row(
        PERSON, dict.fromkeys(_PEOPLE, ("4", "nobody here is invited"))
    ),
    "POST /v1/workspaces/{workspace}:decline": Row(
        PERSON, dict.fromkeys(_PEOPLE, ("4", "nobody here is invited"))
    ),
    "GET /v1/workspaces/{workspace}/members": Row(ROW_READ),
    "POST /v1/workspaces/{workspace}/members": Row(WORKSPACE_MANAGE, body={"user": "colleague"}),
    "PATCH /v1/workspaces/{workspace}/members/{user}": Row(WORKSPACE_MANAGE),
    "DELETE /v1/workspaces/{workspace}/members/{user}": Row(
        WORKSPACE_MANAGE, {"ws_viewer": ("+", "everybody may leave, and the row is this member's")}
    ),
    # Hosts and GPUs
    "GET /v1/hosts": Row(ADMIN),
    "POST /v1/hosts": Row(ADMIN),
    "GET /v1/hosts/{host}": Row(ADMIN),
    "PATCH /v1/hosts/{host}": Row(ADMIN),
    "DELETE /v1/hosts/{host}": Row(ADMIN),
    "POST /v1/hosts/{host}:cordon": Row(ADMIN),
    "POST /v1/hosts/{host}:uncordon": Row(ADMIN),
    "POST /v1/hosts/{host}:drain": Row(ADMIN),
    "POST /v1/hosts/{host}:maintenance": Row(ADMIN),
    "POST /v1/hosts/{host}:activate": Row(ADMIN),
    "POST /v1/hosts/{host}:retire": Row(ADMIN),
    "POST /v1/hosts:batch": Row(ADMIN),
    "POST /v1/hosts:import": Row(ADMIN),
    "GET /v1/hosts:export": Row(ADMIN),
    "POST /v1/hosts/{host}:rotate-credential": Row(ADMIN),
    "POST /v1/hosts/{host}:revoke-credential": Row(ADMIN),
    "POST /v1/gpus/{gpu}:check": Row(ADMIN),
    "POST /v1/gpus/{gpu}:restore": Row(ADMIN),
    "PUT /v1/agent/gpu-checks/{check_id}": Row(AGENT),
    "PUT /v1/agent/volume-removals/{removal_id}": Row(AGENT),
    "GET /v1/dedications": Row(PERSON),
    "POST /v1/dedications": Row(
        ADMIN, body={"host": "agent", "customer": "default", "ends_at": "2099-01-01T00:00:00Z"}
    ),
    "POST /v1/dedications/{dedication}:extend": Row(ADMIN),
    "POST /v1/dedications/{dedication}:end": Row(ADMIN),
    "POST /v1/dedications/{dedication}:reclaim": Row(ADMIN),
    "GET /v1/dedications/{dedication}": Row(
        PERSON,
        differs={
            "foreign_member": ("4", "another customer's"),
            "foreign_owner": ("4", "another customer's"),
        },
    ),
    "POST /v1/hosts/{host}/enrollment-tokens": Row(ADMIN),
    "GET /v1/gpus": Row(PERSON),
    "GET /v1/capacity": Row(PERSON_OR_WORKLOAD),
    # Images
    "GET /v1/images": Row(PERSON),
    "POST /v1/images": Row(ADMIN),
    "GET /v1/images/{image}": Row(PERSON),
    "PATCH /v1/images/{image}": Row(ADMIN),
    "GET /v1/workspaces/{workspace}/images": Row(ROW_READ),
    "PUT /v1/workspaces/{workspace}/images": Row(
        ROW_READ,
        dict.fromkeys(
            ("self", "ws_admin", "ws_member", "ws_viewer", "hub_self"),
            ("3", "owners of the customer and admins decide, and these see the workspace"),
        ),
    ),
    # Quotas
    "GET /v1/quota": Row(PERSON_OR_WORKLOAD),
    "POST /v1/quotas:check": Row(PERSON_OR_WORKLOAD),
    "GET /v1/quotas/{subject}/{subject_id}": Row(ACCOUNT_READ),
    "GET /v1/quota-requests": Row(PERSON),
    "POST /v1/quota-requests": Row(PERSON),
    "GET /v1/quota-requests/{quota_request}": Row(ACCOUNT_READ),
    "POST /v1/quota-requests/{quota_request}:approve": Row(ACCOUNT_WRITE),
    "POST /v1/quota-requests/{quota_request}:refuse": Row(ACCOUNT_WRITE),
    "POST /v1/quota-requests/{quota_request}:withdraw": Row(ACCOUNT_READ),
    "GET /v1/usage": Row(CUSTOMER_OWNER, _NO_CUSTOMER),
    "GET /v1/usage.csv": Row(CUSTOMER_OWNER, _NO_CUSTOMER),
    "GET /v1/usage/mine": Row(PERSON_OR_WORKLOAD),
    "GET /v1/settings": Row(PERSON),
    "PATCH /v1/settings": Row(ADMIN),
    "GET /v1/settings/{key}": Row(PERSON),
    "PATCH /v1/settings/{key}": Row(ADMIN, body={"value": "GPU lab"}),
    "POST /v1/settings/{key}:reset": Row(ADMIN),
    "GET /v1/quota-policies": Row(ADMIN),
    "POST /v1/quota-policies": Row(ADMIN),
    "GET /v1/quota-policies/{policy}": Row(ADMIN),
    "PATCH /v1/quota-policies/{policy}": Row(ADMIN),
    "DELETE /v1/quota-policies/{policy}": Row(ADMIN),
    "PUT /v1/quotas/{subject}/{subject_id}": Row(
        ACCOUNT_WRITE, {"owner": ("3", "owners see the limits of their customer; platform admins set them")}
    ),
    # Environments
    "POST /v1/placements:explain": Row(PERSON),
    "GET /v1/queue/accuracy": Row(ADMIN),
    "GET /v1/reservations": Row(PERSON),
    "GET /v1/reservations/calendar": Row(PERSON),
    "POST /v1/reservations": Row(
        PERSON,
        body={
            "name": "course",
            "gpus": 1,
            "starts_at": "2099-01-01T00:00:00Z",
            "ends_at": "2099-01-01T01:00:00Z",
        },
    ),
    "GET /v1/reservations/{reservation_id}": Row(ROW_READ),
    "POST /v1/reservations/{reservation_id}:cancel": Row(ROW_WRITE),
    "GET /v1/environments": Row(PERSON),
    "POST /v1/environments": Row(PERSON),
    "GET /v1/environments/{environment_id}": Row(ROW_READ_OR_WORKLOAD),
    "DELETE /v1/environments/{environment_id}": Row(ROW_WRITE, _ENVIRONMENT),
    "POST /v1/environments/{environment_id}:start": Row(ROW_WRITE, _ENVIRONMENT),
    "POST /v1/environments/{environment_id}:keep-place": Row(
        ROW_WRITE,
        _ENVIRONMENT
        | dict.fromkeys(
            ("self", "ws_admin", "ws_member", "owner", "admin"),
            ("3", "only the hub starts the server later, so only the hub keeps a place"),
        ),
        body={"hub_user": "self"},
    ),
    "POST /v1/environments/{environment_id}:stop": Row(ROW_WRITE, _ENVIRONMENT),
    "PATCH /v1/environments/{environment_id}": Row(ROW_WRITE, _ENVIRONMENT),
    "POST /v1/environments/{environment_id}:restart": Row(ROW_WRITE, _ENVIRONMENT),
    "POST /v1/environments/{environment_id}:extend": Row(ROW_WRITE, _ENVIRONMENT),
    "GET /v1/environments/{environment_id}/access": Row(ROW_READ, _ENVIRONMENT),
    "POST /v1/environments/{environment_id}:release": Row(
        ROW_READ,
        {
            actor: ("3", "only platform admins give GPUs back without proof, and these see the row")
            for actor in (*_PEOPLE, "workload")
            if actor not in (*_STRANGERS, "admin")
        },
    ),
    "GET /v1/environments/{environment_id}/logs": Row(ROW_READ, _ENVIRONMENT),
    "POST /v1/environments/{environment_id}:save-image": Row(ROW_WRITE, _ENVIRONMENT),
    "POST /v1/image-saves/{save_id}:cancel": Row(ROW_WRITE, _ENVIRONMENT),
    "GET /v1/environments/{environment_id}/image-saves": Row(ROW_READ_OR_WORKLOAD),
    "GET /v1/environments/{environment_id}/usage": Row(ROW_READ_OR_WORKLOAD),
    "GET /v1/environments/{environment_id}/metrics": Row(ROW_READ_OR_WORKLOAD),
    "GET /v1/tasks/{task_id}/metrics": Row(TASK_READ),
    "GET /v1/hosts/{host}/metrics": Row(ADMIN),
    "GET /v1/gpus/{gpu}/metrics": Row(ADMIN),
    # Tasks
    "GET /v1/tasks": Row(PERSON_OR_WORKLOAD),
    "POST /v1/tasks": Row(PERSON_OR_WORKLOAD),
    "GET /v1/tasks/{task_id}": Row(TASK_READ),
    "GET /v1/tasks/{task_id}/attempts": Row(TASK_READ),
    "GET /v1/tasks/{task_id}/logs": Row(TASK_READ),
    "GET /v1/tasks/{task_id}/artifacts": Row(TASK_READ),
    "GET /v1/tasks/{task_id}/artifacts/{artifact_id}": Row(
        TASK_READ, differs=dict.fromkeys((a for a in ACTORS if TASK_READ[a] == "+"), _NO_ARTIFACT)
    ),
    "GET /v1/tasks/{task_id}/logs:follow": Row(TASK_READ),
    "POST /v1/tasks/{task_id}:stop": Row(TASK_WRITE),
    "POST /v1/tasks/{task_id}:retry": Row(TASK_WRITE),
    "GET /v1/task-inputs": Row(PERSON_OR_WORKLOAD),
    "PUT /v1/task-inputs/{sha256}": Row(PERSON_OR_WORKLOAD, query={"size_bytes": 1, "offset": 0}),
    "GET /v1/task-arrays/{array_id}": Row(TASK_READ),
    "POST /v1/task-arrays/{array_id}:stop": Row(TASK_WRITE),
    "GET /v1/task-schedules": Row(PERSON),
    "POST /v1/task-schedules": Row(PERSON),
    "GET /v1/task-schedules/{schedule_id}": Row(ROW_READ),
    "PATCH /v1/task-schedules/{schedule_id}": Row(ROW_READ, _NOT_THEIR_SCHEDULE),
    "DELETE /v1/task-schedules/{schedule_id}": Row(ROW_READ, _NOT_THEIR_SCHEDULE),
    # SSH keys
    "GET /v1/ssh-keys": Row(PERSON),
    "POST /v1/ssh-keys": Row(PERSON),
    "GET /v1/ssh-keys/{key_id}": Row(PERSON, _OWN_KEYS),
    "DELETE /v1/ssh-keys/{key_id}": Row(PERSON, _OWN_KEYS),
    # Volumes
    "GET /v1/volumes": Row(PERSON),
    "GET /v1/volumes/{volume_id}": Row(ACCOUNT_READ),
    "DELETE /v1/volumes/{volume_id}": Row(ACCOUNT_READ),
    "PUT /v1/agent/volumes/{volume_id}/size": Row(AGENT),
    # Events
    "GET /v1/events": Row(PERSON_OR_WORKLOAD),
    # Notifications
    "GET /v1/notifications": Row(PERSON),
    "GET /v1/notifications/unread": Row(PERSON),
    "POST /v1/notifications:read-all": Row(PERSON),
    "POST /v1/notifications/{notification_id}:read": Row(PERSON, _NOBODY_ELSES),
    "GET /v1/notification-preferences": Row(PERSON),
    "PUT /v1/notification-preferences/{kind}": Row(PERSON),
    "DELETE /v1/notification-preferences/{kind}": Row(PERSON, _NOT_SET),
    # Alerts
    "GET /v1/alerts": Row(PERSON),
    "GET /v1/alerts/{alert_id}": Row(PERSON, _ALERT_OF_A_HOST),
    "POST /v1/alerts/{alert_id}:acknowledge": Row(ADMIN),
    "GET /v1/alert-signals": Row(ADMIN),
    "GET /v1/alert-rules": Row(ADMIN),
    "POST /v1/alert-rules": Row(ADMIN),
    "GET /v1/alert-rules/{rule}": Row(ADMIN),
    "PATCH /v1/alert-rules/{rule}": Row(ADMIN),
    "DELETE /v1/alert-rules/{rule}": Row(ADMIN),
    "GET /v1/alert-silences": Row(ADMIN),
    "POST /v1/alert-silences": Row(ADMIN),
    "DELETE /v1/alert-silences/{silence_id}": Row(ADMIN),
    # Webhooks
    "GET /v1/webhooks": Row(PERSON),
    "POST /v1/webhooks": Row(PERSON),
    "GET /v1/webhooks/{webhook_id}": Row(ACCOUNT_READ),
    "PATCH /v1/webhooks/{webhook_id}": Row(ACCOUNT_READ),
    "DELETE /v1/webhooks/{webhook_id}": Row(ACCOUNT_READ),
    "POST /v1/webhooks/{webhook_id}:rotate-secret": Row(
        ACCOUNT_READ, {"owner": ("3", "with the secret and the URL one hears all that its owner may see")}
    ),
    "POST /v1/webhooks/{webhook_id}:test": Row(ACCOUNT_READ),
    "GET /v1/webhooks/{webhook_id}/deliveries": Row(ACCOUNT_READ),
    # Audit
    "GET /v1/audit/records": Row(CUSTOMER_OWNER, _NO_CUSTOMER),
    "GET /v1/audit/records:export": Row(CUSTOMER_OWNER, _NO_CUSTOMER),
    "GET /v1/audit/verification": Row(ADMIN),
    # Agent protocol
    "POST /v1/agent/enroll": Row(_policy("3")),
    "POST /v1/agent/sessions": Row(AGENT),
    "POST /v1/agent/heartbeat": Row(AGENT),
    "GET /v1/agent/workloads": Row(AGENT, query={"epoch": 0, "wait_s": 0}),
    "PUT /v1/agent/workloads/{workload_id}/observed": Row(AGENT),
    "PUT /v1/agent/log-requests/{request_id}": Row(AGENT),
    "PUT /v1/agent/image-saves/{save_id}": Row(AGENT),
    "POST /v1/agent/tasks/claim": Row(AGENT),
    "POST /v1/agent/attempts/{attempt_id}/accept": Row(AGENT),
    "POST /v1/agent/attempts/{attempt_id}/start": Row(AGENT),
    "POST /v1/agent/attempts/{attempt_id}/renew": Row(AGENT),
    "POST /v1/agent/attempts/{attempt_id}/logs": Row(AGENT),
    "PUT /v1/agent/attempts/{attempt_id}/artifacts": Row(
        AGENT,
        query={"epoch": 0, "path": "a", "size_bytes": 0, "sha256": "0" * 64, "offset": 0},
    ),
    "GET /v1/agent/attempts/{attempt_id}/input": Row(AGENT, query={"epoch": 0, "offset": 0}),
    "POST /v1/agent/attempts/{attempt_id}/progress": Row(AGENT),
    "POST /v1/agent/attempts/{attempt_id}/complete": Row(AGENT),
    "POST /v1/agent/attempts/{attempt_id}/release": Row(AGENT),
}
"""``METHOD path`` -> row. A route that is not here fails the test."""
