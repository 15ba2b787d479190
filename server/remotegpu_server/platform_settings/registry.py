"""Every platform setting: its key, type, default, bounds and meaning, declared once.

A slice declares its own here and reads it with :func:`remotegpu_server.platform_settings.service.value`.
Process-level settings (addresses, pool sizes) are in ``settings.py`` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from remotegpu_server import egress

T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[T]):
    """One setting. Its type is that of ``default``; ``minimum`` and ``maximum`` bound numbers."""

    key: str
    """``<group>.<name>``, the unit at its end: ``environments.start_silence_s``."""
    default: T
    doc: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    """The only texts that it takes; empty: any."""
    parse: Callable[[str], object] | None = None
    """Raises ``ValueError`` for a text that it does not take."""
    public: bool = False
    """True: everybody signed in may read it."""


AnySetting = Setting[int] | Setting[float] | Setting[bool] | Setting[str]

REGISTRY: dict[str, AnySetting] = {}


def _declare(setting: Setting[T]) -> Setting[T]:
    REGISTRY[setting.key] = setting
    return setting


IMAGE_SAVE_ALLOWED = _declare(
    Setting(
        key="images.save_allowed",
        default="members",
        choices=("nobody", "owners", "members"),
        public=True,
        doc="Who may save an environment as an image of its workspace: `members` of the workspace that are "
        "more than viewers, only its `owners` and admins, or `nobody`.",
    )
)

IMAGE_SAVE_MAX_BYTES = _declare(
    Setting(
        key="images.save_max_bytes",
        default=50 * 2**30,
        minimum=2**20,
        maximum=2**50,
        public=True,
        doc="A save whose file system is larger than this fails.",
    )
)

IMAGE_SAVE_LIMIT_S = _declare(
    Setting(
        key="images.save_limit_s",
        default=3600.0,
        minimum=60.0,
        maximum=86400.0,
        doc="A save that is not done after this long has failed.",
    )
)

ENVIRONMENT_START_SILENCE_S = _declare(
    Setting(
        key="environments.start_silence_s",
        default=900.0,
        minimum=60.0,
        maximum=86400.0,
        doc="A start that its agent has not reported about for this long has failed: longer than any pull "
        "may stall.",
    )
)

DEDICATION_GRACE_S = _declare(
    Setting(
        key="dedications.grace_s",
        default=86400.0,
        minimum=0.0,
        maximum=2592000.0,
        doc="How long after the end of a dedication its host is left alone before it is cleaned.",
    )
)

DEDICATION_STEP_LIMIT_S = _declare(
    Setting(
        key="dedications.step_limit_s",
        default=3600.0,
        minimum=60.0,
        maximum=86400.0,
        doc="A step of a clean-up that has no proof after this long has failed, and admins are told.",
    )
)

GPU_MAX_TEMPERATURE_C = _declare(
    Setting(
        key="gpus.max_temperature_c",
        default=95.0,
        minimum=70.0,
        maximum=120.0,
        doc="A GPU hotter than this takes no new work until a check has passed or an admin restores it.",
    )
)

HOST_DISK_FULL_PERCENT = _declare(
    Setting(
        key="hosts.disk_full_percent",
        default=95.0,
        minimum=80.0,
        maximum=100.0,
        doc="A host whose homes' disk is fuller than this is degraded.",
    )
)

HOST_LOST_AFTER_S = _declare(
    Setting(
        key="hosts.lost_after_s",
        default=300.0,
        minimum=60.0,
        maximum=86400.0,
        doc="Silence after which an unreachable host counts as lost. Its environments "
        "stay unreachable and keep what they hold.",
    )
)

ENVIRONMENT_DEFAULT_LIFETIME_S = _declare(
    Setting(
        key="environments.default_lifetime_s",
        default=0.0,
        minimum=0.0,
        maximum=366 * 86400.0,
        doc="How long an environment runs whose request does not say; 0: without end, below the ceiling.",
        public=True,
    )
)
ENVIRONMENT_MAX_LIFETIME_S = _declare(
    Setting(
        key="environments.max_lifetime_s",
        default=0.0,
        minimum=0.0,
        maximum=366 * 86400.0,
        doc="The ceiling: no stop time lies further after the start, asked for or extended; 0: none.",
        public=True,
    )
)
ENVIRONMENT_FIRST_WARNING_S = _declare(
    Setting(
        key="environments.first_warning_s",
        default=1800.0,
        minimum=0.0,
        maximum=7 * 86400.0,
        doc="The owner is first warned so long before a stop time; 0: not at all.",
    )
)
ENVIRONMENT_LAST_WARNING_S = _declare(
    Setting(
        key="environments.last_warning_s",
        default=300.0,
        minimum=0.0,
        maximum=86400.0,
        doc="The owner is warned once more so long before a stop time; 0: not at all.",
    )
)
ENVIRONMENT_IDLE_AFTER_S = _declare(
    Setting(
        key="environments.idle_after_s",
        default=7200.0,
        minimum=0.0,
        maximum=30 * 86400.0,
        doc="Unused time until the warning that announces an idle stop, where the request does not say; "
        "0: never.",
        public=True,
    )
)
ENVIRONMENT_IDLE_GRACE_S = _declare(
    Setting(
        key="environments.idle_grace_s",
        default=900.0,
        minimum=1.0,
        maximum=7 * 86400.0,
        doc="Time from that warning to the stop.",
        public=True,
    )
)

ENVIRONMENT_HISTORY_AFTER_S = _declare(
    Setting(
        key="environments.history_after_s",
        default=30 * 86400.0,
        minimum=3600.0,
        maximum=3660 * 86400.0,
        doc="Released placements and deleted environments move to the history tables after this time; "
        "a deleted environment is not found any more then. Usage statistics count both.",
    )
)
QUEUE_HALF_LIFE_S = _declare(
    Setting(
        key="queue.half_life_s",
        default=7 * 86400.0,
        minimum=3600.0,
        maximum=366 * 86400.0,
        doc="GPU-hours that lie so far back count half in the order of the queue.",
        public=True,
    )
)
QUEUE_BEST_PRIORITY_MEMBER = _declare(
    Setting(
        key="queue.best_priority_member",
        default=5,
        minimum=1,
        maximum=9,
        doc="The best priority (1 is served first) that a member may ask for.",
        public=True,
    )
)
QUEUE_BEST_PRIORITY_OWNER = _declare(
    Setting(
        key="queue.best_priority_owner",
        default=4,
        minimum=1,
        maximum=9,
        doc="The best priority that an owner of a customer may ask for; admins may ask for any.",
        public=True,
    )
)
QUEUE_PREEMPTION_NOTICE_S = _declare(
    Setting(
        key="queue.preemption_notice_s",
        default=300.0,
        minimum=0.0,
        maximum=86400.0,
        doc="Time between the announcement that a preemptible environment is stopped and its stop.",
        public=True,
    )
)


QUOTA_GPU_HOURS_WINDOW_S = _declare(
    Setting(
        key="quotas.gpu_hours_window_s",
        default=7 * 86400,
        minimum=3600,
        maximum=366 * 86400,
        public=True,
        doc="The window over which GPU-hours are summed, where a limit names none.",
    )
)

QUOTA_GPU_HOURS_WARN_PERCENT = _declare(
    Setting(
        key="quotas.gpu_hours_warn_percent",
        default=90.0,
        minimum=1.0,
        maximum=100.0,
        doc="Holders of GPUs are warned when this much of a limit of GPU-hours is used.",
    )
)

QUOTA_GPU_HOURS_GRACE_S = _declare(
    Setting(
        key="quotas.gpu_hours_grace_s",
        default=900.0,
        minimum=0.0,
        maximum=7 * 86400.0,
        doc="How long an environment with GPUs may go on after its GPU-hours are used up.",
    )
)

QUOTA_STORAGE_WARN_PERCENT = _declare(
    Setting(
        key="quotas.storage_warn_percent",
        default=90.0,
        minimum=10.0,
        maximum=100.0,
        doc="The owner of homes is warned when they take this much of a storage limit.",
    )
)

VOLUME_MEASURE_EVERY_S = _declare(
    Setting(
        key="volumes.measure_every_s",
        default=3600.0,
        minimum=300.0,
        maximum=7 * 86400.0,
        doc="How often the home of something that runs is measured; others: after it ended, and once a day.",
    )
)

QUOTA_DEFAULT_POLICY = _declare(
    Setting(
        key="quotas.default_user_policy",
        default="",
        doc="The quota policy of every user to whom no policy applies; empty: none, so no limit. "
        "`free`, `basic` and `pro` are there from the start.",
    )
)

SYSTEM_NAME = _declare(
    Setting(
        key="system.name",
        default="RemoteGPU",
        public=True,
        doc="What people call this installation: the title of the hub's pages.",
    )
)
RESERVATION_HORIZON_S = _declare(
    Setting(
        key="reservations.horizon_s",
        default=86400.0,
        minimum=0.0,
        maximum=30 * 86400.0,
        doc="Work without a known end counts as gone so long from now: it keeps away from reservations that "
        "begin sooner, and reservations that begin sooner count it as in the way.",
        public=True,
    )
)
RESERVATION_GRACE_S = _declare(
    Setting(
        key="reservations.grace_s",
        default=1800.0,
        minimum=60.0,
        maximum=7 * 86400.0,
        doc="A reservation that nobody uses so long after its start is given back.",
        public=True,
    )
)
RESERVATION_MAX_LENGTH_S = _declare(
    Setting(
        key="reservations.max_length_s",
        default=14 * 86400.0,
        minimum=3600.0,
        maximum=366 * 86400.0,
        doc="The longest reservation.",
        public=True,
    )
)
RESERVATION_MAX_AHEAD_S = _declare(
    Setting(
        key="reservations.max_ahead_s",
        default=90 * 86400.0,
        minimum=3600.0,
        maximum=5 * 366 * 86400.0,
        doc="A reservation starts at most so long from now.",
        public=True,
    )
)

ALERT_HOLD_S = _declare(
    Setting(
        key="alerts.hold_s",
        default=60.0,
        minimum=0.0,
        maximum=86400.0,
        doc="An alert is resolved when its rule has not been true for so long; twice as long each time that "
        "it comes back shortly after.",
    )
)
ALERT_FLAP_WINDOW_S = _declare(
    Setting(
        key="alerts.flap_window_s",
        default=600.0,
        minimum=0.0,
        maximum=86400.0,
        doc="An alert that comes back so soon after it was resolved flaps.",
    )
)
WEBHOOK_ALLOWED_NETWORKS = _declare(
    Setting(
        key="webhooks.allowed_networks",
        default="",
        parse=egress.parse_networks,
        doc="Networks that webhooks may go to besides public addresses, as CIDR, comma separated: "
        "`10.20.0.0/16`. There `http://` is allowed, too.",
    )
)
NOTIFICATION_GIVE_UP_S = _declare(
    Setting(
        key="notifications.give_up_s",
        default=86400.0,
        minimum=60.0,
        maximum=7 * 86400.0,
        doc="Mail and webhooks that could not be delivered for so long are given up, with an event.",
    )
)
NOTIFICATION_DIGEST_EVERY_S = _declare(
    Setting(
        key="notifications.digest_every_s",
        default=6 * 3600.0,
        minimum=60.0,
        maximum=7 * 86400.0,
        doc="A digest is mailed so long after the first thing in it.",
        public=True,
    )
)
NOTIFICATION_MAIL_BURST = _declare(
    Setting(
        key="notifications.mail_burst",
        default=5,
        minimum=1,
        maximum=1000,
        doc="More mails than this to one person in ten minutes go into the digest.",
        public=True,
    )
)
NOTIFICATION_KEEP_S = _declare(
    Setting(
        key="notifications.keep_s",
        default=90 * 86400.0,
        minimum=86400.0,
        maximum=3660 * 86400.0,
        doc="Notifications are removed after this long, read or not.",
        public=True,
    )
)

TASK_LOG_CAP_BYTES = _declare(
    Setting(
        key="tasks.log_cap_bytes",
        default=100 * 2**20,
        minimum=2**16,
        maximum=2**40,
        public=True,
        doc="Output of one attempt above this is dropped, with a mark where it was cut.",
    )
)

TASK_ARRAY_MAX = _declare(
    Setting(
        key="tasks.array_max",
        default=1000,
        minimum=1,
        maximum=100000,
        public=True,
        doc="Largest array of tasks that one request may submit.",
    )
)

TASK_ARTIFACTS_MAX_BYTES = _declare(
    Setting(
        key="tasks.artifacts_max_bytes",
        default=10 * 2**30,
        minimum=0,
        maximum=2**44,
        public=True,
        doc="Files that one attempt may leave in /output, all together; the others are not kept.",
    )
)

TASK_OUTPUTS_KEEP_S = _declare(
    Setting(
        key="tasks.outputs_keep_s",
        default=30 * 86400.0,
        minimum=3600.0,
        maximum=10 * 366 * 86400.0,
        public=True,
        doc="Output and artifacts of an attempt are removed so long after its end.",
    )
)

TASK_INPUT_MAX_BYTES = _declare(
    Setting(
        key="tasks.input_max_bytes",
        default=256 * 2**20,
        minimum=2**20,
        maximum=2**34,
        public=True,
        doc="Largest file that is sent for a task to read, such as the arguments of a function.",
    )
)

TASK_INPUTS_MAX_BYTES = _declare(
    Setting(
        key="tasks.inputs_max_bytes",
        default=4 * 2**30,
        minimum=2**20,
        maximum=2**44,
        public=True,
        doc="Inputs of one user's tasks, all together; those that no task needs give way to new ones.",
    )
)

TASK_INPUTS_KEEP_S = _declare(
    Setting(
        key="tasks.inputs_keep_s",
        default=86400.0,
        minimum=3600.0,
        maximum=366 * 86400.0,
        public=True,
        doc="An input goes so long after the last task with it has ended; until then that can be retried.",
    )
)

TASK_WAITING_MAX = _declare(
    Setting(
        key="tasks.waiting_max",
        default=5000,
        minimum=1,
        maximum=1000000,
        public=True,
        doc="So many tasks of one user may wait at a time; the queue is looked through every second.",
    )
)
