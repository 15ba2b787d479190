"""All tables. PostgreSQL 15 or newer; the invariants of the system are written here, not in the services.

Usage is always a SUM over live rows (``released_at IS NULL``): no counters. Times are the database's
``now()``. Ids are ``<prefix>-<random>`` made by :func:`new_id`; events have a position instead.
"""

from __future__ import annotations

from remotegpu_server.db.tables.alerts import Alert, AlertRule, AlertSilence
from remotegpu_server.db.tables.allocations import Allocation, CapacityChange, Placement
from remotegpu_server.db.tables.base import Base, Xid8, new_id
from remotegpu_server.db.tables.dedications import Dedication, DedicationStep
from remotegpu_server.db.tables.environments import Environment, LogRequest
from remotegpu_server.db.tables.history import (
    allocations_history,
    environments_history,
    placements_history,
)
from remotegpu_server.db.tables.hosts import Gpu, GpuCheck, Host, HostSample, HostSampleHour, HostSampleMinute
from remotegpu_server.db.tables.identity import (
    Customer,
    LoginFailure,
    OidcLogin,
    PasswordReset,
    Token,
    User,
    Workspace,
    WorkspaceMember,
)
from remotegpu_server.db.tables.images import Image, ImageSave, WorkspaceImage
from remotegpu_server.db.tables.operations import (
    AuditRecord,
    Event,
    IdempotencyKey,
    Leadership,
    Notification,
    PlatformSetting,
)
from remotegpu_server.db.tables.outbox import NotificationPreference, OutboxMessage, Webhook
from remotegpu_server.db.tables.queue import HubStart, Reservation, StartEstimate
from remotegpu_server.db.tables.quotas import (
    Quota,
    QuotaPolicy,
    QuotaPolicyLimit,
    QuotaPolicyTarget,
    QuotaRequest,
)
from remotegpu_server.db.tables.ssh_keys import SshKey
from remotegpu_server.db.tables.tasks import (
    LIVE_ATTEMPT,
    Artifact,
    Attempt,
    Task,
    TaskArray,
    TaskDependency,
    TaskInput,
    TaskSchedule,
)
from remotegpu_server.db.tables.volumes import Volume, VolumeRemoval

__all__ = [
    "LIVE_ATTEMPT",
    "Alert",
    "AlertRule",
    "AlertSilence",
    "Allocation",
    "Artifact",
    "Attempt",
    "AuditRecord",
    "Base",
    "CapacityChange",
    "Customer",
    "Dedication",
    "DedicationStep",
    "Environment",
    "Event",
    "Gpu",
    "GpuCheck",
    "Host",
    "HostSample",
    "HostSampleHour",
    "HostSampleMinute",
    "HubStart",
    "IdempotencyKey",
    "Image",
    "ImageSave",
    "Leadership",
    "LogRequest",
    "LoginFailure",
    "Notification",
    "NotificationPreference",
    "OidcLogin",
    "OutboxMessage",
    "PasswordReset",
    "Placement",
    "PlatformSetting",
    "Quota",
    "QuotaPolicy",
    "QuotaPolicyLimit",
    "QuotaPolicyTarget",
    "QuotaRequest",
    "Reservation",
    "SshKey",
    "StartEstimate",
    "Task",
    "TaskArray",
    "TaskDependency",
    "TaskInput",
    "TaskSchedule",
    "Token",
    "User",
    "Volume",
    "VolumeRemoval",
    "Webhook",
    "Workspace",
    "WorkspaceImage",
    "WorkspaceMember",
    "Xid8",
    "allocations_history",
    "environments_history",
    "new_id",
    "placements_history",
]
