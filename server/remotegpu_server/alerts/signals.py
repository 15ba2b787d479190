"""What rules can be about: each signal gives one reading of each object that it knows.

A value that nobody measured is ``None``: it neither fires nor resolves anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import metadata
from typing import Any

from sqlalchemy import LargeBinary as Bytes
from sqlalchemy import cast, func, literal, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.quotas import QuotaResource
from remotegpu_server.db import tables
from remotegpu_server.db.samples import Sample, newest
from remotegpu_server.queue import waits
from remotegpu_server.quotas import queries as quotas
from remotegpu_server.settings import Settings

_VERSION = metadata.version("remotegpu")
_host, _gpu = tables.Host, tables.Gpu
_UNEXPECTED = ("maintenance", "retired")
"""Hosts of which nothing is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The value of a signal for one object now."""

    object_id: str
    name: str
    value: float | None
    detail: str = ""
    """Said in brackets behind the value."""
    host_labels: dict[str, Any] = field(default_factory=dict)
    user_id: str | None = None
    """Whose it is: they see the alert, and are told where the signal says so."""
    customer_id: str | None = None
    workspace_id: str | None = None


@dataclass(frozen=True, slots=True)
class GpuNow:
    """A GPU, its host, and what its newest sample says; ``None``: nothing at all."""

    gpu: tables.Gpu
    host: tables.Host
    sample: dict[str, Any] | None

    def reading(self, value: float | None, detail: str = "") -> Reading:
        name = f"GPU {self.gpu.index} of {self.host.name}"
        return Reading(
            object_id=self.gpu.id,
            name=f"{name} (simulated)" if self.gpu.simulated else name,
            host_labels=self.host.labels,
            value=value,
            detail=detail,
        )


class View:
    """What the signals of one pass look at; what several of them need is read once."""

    def __init__(self, db: AsyncSession, settings: Settings) -> None:
        self.db = db
        self.settings = settings
        self._hosts: list[tables.Host] | None = None
        self._samples: dict[str, Sample] | None = None
        self._gpus: list[GpuNow] | None = None

    async def hosts(self) -> list[tables.Host]:
        """Those of which something is expected."""
        if self._hosts is None:
            found = await self.db.scalars(select(_host).where(_host.operational.not_in(_UNEXPECTED)))
            self._hosts = list(found)
        return self._hosts

    async def samples(self) -> dict[str, Sample]:
        """The newest of each of these hosts, by its id; none of a silent one."""
        if self._samples is None:
            ids = [host.id for host in await self.hosts()]
            self._samples = await newest(self.db, host_ids=ids)
        return self._samples

    async def gpus(self) -> list[GpuNow]:
        """Of these hosts."""
        if self._gpus is None:
            hosts = {host.id: host for host in await self.hosts()}
            samples = await self.samples()
            rows = await self.db.scalars(select(_gpu).where(_gpu.host_id.in_(hosts)))
            self._gpus = [
                GpuNow(
                    gpu,
                    hosts[gpu.host_id],
                    samples[gpu.host_id].gpus.get(gpu.uuid) if gpu.host_id in samples else None,
                )
                for gpu in rows
            ]
        return self._gpus


Read = Callable[[View], Awaitable[Sequence[Reading]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Something that rules can be about."""

    name: str
    object_type: str
    unit: str
    description: str
    advice: str
    read: Read
    maximum: float
    minimum: float = 0.0
    every_s: float = 5.0
    tells_user: bool = False
    """Whether the object's user is told, besides admins."""


SIGNALS: dict[str, Signal] = {}


def _signal(**given: Any) -> Callable[[Read], Read]:
    def declare(read: Read) -> Read:
        SIGNALS[given["name"]] = Signal(read=read, **given)
        return read

    return declare


# Hosts


@_signal(
    name="host_silent_s",
    object_type="host",
    unit="s",
    maximum=7 * 86400,
    description="Seconds since the last heartbeat of a host that is unreachable or lost.",
    advice="Look at its power, network and agent (`systemctl status remotegpu-agent`). What runs there keeps "
    "its GPUs until it is heard again or an admin releases it.",
)
async def host_silent(view: View) -> list[Reading]:
    """Judged by the liveness loop, which decides nothing while the server itself seems cut off."""
    silent = func.extract("epoch", func.now() - _host.last_heartbeat_at)
    rows = await view.db.execute(
        select(_host.id, _host.name, _host.labels, _host.connection, silent).where(
            _host.connection != "never", _host.operational.not_in(_UNEXPECTED)
        )
    )
    return [
        Reading(
            object_id=host_id,
            name=name,
            host_labels=labels,
            value=float(silent_s) if connection in ("unreachable", "lost") else 0.0,
        )
        for host_id, name, labels, connection, silent_s in rows
    ]


@_signal(
    name="hosts_silent_percent",
    object_type="fleet",
    unit="%",
    maximum=100,
    description="Share of the hosts that are silent, where there are three or more.",
    advice="So many at once say more about this server's network than about the hosts. Until it is over no "
    "host is judged.",
)
async def hosts_silent(view: View) -> list[Reading]:
    """By the heartbeats alone: the liveness loop holds still in this case."""
    silent = _host.last_heartbeat_at < func.now() - timedelta(seconds=view.settings.unreachable_after_s)
    total, quiet = (
        await view.db.execute(
            select(func.count(), func.count().filter(silent)).where(
                _host.connection != "never", _host.operational.not_in(_UNEXPECTED)
            )
        )
    ).one()
    value = 100.0 * quiet / total if total >= 3 else 0.0
    return [Reading(object_id="all", name="all hosts", value=value, detail=f"{quiet} of {total}")]


@_signal(
    name="agent_outdated",
    object_type="host",
    unit="",
    maximum=1,
    description="1 where the agent's version is not the server's.",
    advice="Upgrade the agent: `remotegpu host add` does it again, and what runs goes on.",
    every_s=60.0,
)
async def agent_outdated(view: View) -> list[Reading]:
    rows = await view.db.execute(
        select(_host.id, _host.name, _host.labels, _host.agent_version).where(
            _host.connection == "online", _host.agent_version.is_not(None)
        )
    )
    return [
        Reading(
            object_id=host_id,
            name=name,
            host_labels=labels,
            value=float(version != _VERSION),
            detail=f"{version}, not {_VERSION}" if version != _VERSION else "",
        )
        for host_id, name, labels, version in rows
    ]


def _percent(part: Any, whole: Any) -> float | None:
    return 100.0 * float(part) / float(whole) if part is not None and whole else None


_HOST_VALUES: dict[str, Callable[[dict[str, Any], tables.Host], float | None]] = {
    "host_cpu_percent": lambda sample, _: sample.get("cpu_percent"),
    "host_memory_percent": lambda sample, host: _percent(sample.get("memory_used_bytes"), host.memory_bytes),
    "host_disk_percent": lambda sample, _: _percent(
        sample.get("disk_used_bytes"), sample.get("disk_total_bytes")
    ),
}


def _host_value(name: str) -> Read:
    async def read(view: View) -> list[Reading]:
        samples = await view.samples()
        return [
            Reading(
                object_id=host.id,
                name=host.name,
                host_labels=host.labels,
                value=_HOST_VALUES[name](samples[host.id].host, host) if host.id in samples else None,
            )
            for host in await view.hosts()
        ]

    return read


for _name, _what, _advice in (
    ("host_cpu_percent", "CPU use of the host.", "See what runs there; ask for fewer CPUs, or spread it."),
    (
        "host_memory_percent",
        "Memory use of the host.",
        "See what runs there. The kernel kills something when it is full.",
    ),
    (
        "host_disk_percent",
        "Use of the disk that holds the homes.",
        "Remove old homes and images (`remotegpu volume list --host HOST`), or add space.",
    ),
):
    _signal(name=_name, object_type="host", unit="%", maximum=100, description=_what, advice=_advice)(
        _host_value(_name)
    )


@_signal(
    name="metrics_missing_s",
    object_type="host",
    unit="s",
    maximum=86400,
    description="Seconds since the last measurement of a host that is online.",
    advice="Look at the agent's log on the host.",
)
async def metrics_missing(view: View) -> list[Reading]:
    hosts = [host for host in await view.hosts() if host.connection == "online"]
    samples = await view.samples()
    now = await view.db.scalar(select(func.now()))
    assert now is not None
    readings = []
    for host in hosts:
        last = samples[host.id].at if host.id in samples else host.registered_at
        value = None if last is None else max((now - last).total_seconds(), 0.0)
        readings.append(Reading(object_id=host.id, name=host.name, host_labels=host.labels, value=value))
    return readings


# GPUs


def _xid(one: GpuNow, sample: dict[str, Any]) -> float | None:
    """Of a GPU in service: one that is out, or that an admin has put back, has had its alert."""
    in_service = one.gpu.health == "healthy" and one.gpu.accepted_reason is None
    return float(sample.get("xid") or 0) if in_service else 0.0


def _ecc(one: GpuNow, sample: dict[str, Any]) -> float | None:
    in_service = one.gpu.health == "healthy" and one.gpu.accepted_reason is None
    counted = sample.get("ecc_uncorrected")
    return counted if in_service or counted is None else 0.0


_GPU_VALUES: dict[str, Callable[[GpuNow, dict[str, Any]], float | None]] = {
    "gpu_temperature_c": lambda _, sample: sample.get("temperature_c"),
    "gpu_memory_percent": lambda one, sample: _percent(
        sample.get("memory_used_bytes"), one.gpu.memory_total_bytes
    ),
    "gpu_power_percent": lambda _, sample: _percent(sample.get("power_w"), sample.get("power_limit_w")),
    "gpu_xid": _xid,
    "gpu_ecc_uncorrected": _ecc,
}


def _gpu_value(name: str) -> Read:
    async def read(view: View) -> list[Reading]:
        return [
            one.reading(None if one.sample is None else _GPU_VALUES[name](one, one.sample))
            for one in await view.gpus()
        ]

    return read


for _name, _unit, _most, _what, _advice in (
    (
        "gpu_temperature_c",
        "°C",
        150,
        "Temperature of the GPU.",
        "Look at fans, dust and the room; drain the host if it goes on.",
    ),
    (
        "gpu_memory_percent",
        "%",
        100,
        "Memory of the GPU in use.",
        "Its holder is near an out-of-memory error: a larger GPU or smaller batches help.",
    ),
    (
        "gpu_power_percent",
        "%",
        200,
        "Power as a share of the limit.",
        "It runs at its power cap, so slower than it could; raise the limit if the supply allows it.",
    ),
    (
        "gpu_xid",
        "",
        1000,
        "The last XID error of a GPU that is in service; 0: none.",
        "Look the code up in NVIDIA's XID list; check the GPU (`remotegpu gpu check`) before it breaks.",
    ),
    (
        "gpu_ecc_uncorrected",
        "",
        1e9,
        "Uncorrectable memory errors of a GPU that is in service, since its driver was loaded.",
        "Drain the host and reset the GPU; replace it when it comes back.",
    ),
):
    _signal(name=_name, object_type="gpu", unit=_unit, maximum=_most, description=_what, advice=_advice)(
        _gpu_value(_name)
    )


@_signal(
    name="gpu_unhealthy",
    object_type="gpu",
    unit="",
    maximum=1,
    description="1 where a GPU was taken out of service: its agent, its temperature or its absence said so.",
    advice="It takes no new work. Check it (`remotegpu gpu check`), or restore it when the cause is gone.",
)
async def gpu_unhealthy(view: View) -> list[Reading]:
    return [
        one.reading(float(one.gpu.health != "healthy"), one.gpu.health_reason or "")
        for one in await view.gpus()
    ]


@_signal(
    name="gpu_metrics_missing",
    object_type="gpu",
    unit="",
    maximum=1,
    description="1 where an online host measures, but says nothing of a GPU that it has.",
    advice="The driver may be gone: `nvidia-smi` on the host tells.",
)
async def gpu_metrics_missing(view: View) -> list[Reading]:
    measuring = await view.samples()
    readings = []
    for one in await view.gpus():
        said = one.sample is not None and any(value is not None for value in one.sample.values())
        looked = one.host.id in measuring and one.host.connection == "online"
        expected = one.gpu.health != "missing" and one.gpu.mig_profile is None
        readings.append(one.reading(float(expected and not said) if looked else None))
    return readings


# Work


@_signal(
    name="task_overdue_s",
    object_type="task",
    unit="s",
    maximum=86400,
    tells_user=True,
    description="Seconds since the lease of a running task ended without a renewal.",
    advice="Its host may be cut off. It is given up by itself and tried again where it may be.",
)
async def task_overdue(view: View) -> list[Reading]:
    attempt, task = tables.Attempt, tables.Task
    late = func.extract("epoch", func.now() - attempt.lease_expires_at)
    rows = await view.db.execute(
        select(task, attempt.lease_expires_at, late, _host.name, _host.labels)
        .join(attempt, attempt.task_id == task.id)
        .join(_host, _host.id == attempt.host_id)
        .where(attempt.finished_at.is_(None), attempt.lease_expires_at.is_not(None), attempt.rank == 0)
    )
    return [
        Reading(
            object_id=task.id,
            name=task.name or task.id,
            value=max(float(late_s), 0.0),
            detail=f"on {host_name}",
            host_labels=labels,
            user_id=task.owner_id,
            customer_id=task.customer_id,
            workspace_id=task.workspace_id,
        )
        for task, _, late_s, host_name, labels in rows
    ]


@_signal(
    name="gpu_idle_s",
    object_type="environment",
    unit="s",
    maximum=30 * 86400,
    description="Seconds that a running environment has held a GPU without using it.",
    advice="Ask its owner, or set an idle policy on its image, workspace or customer.",
    every_s=60.0,
)
async def gpu_idle(view: View) -> list[Reading]:
    row, user = tables.Environment, tables.User
    idle = func.extract("epoch", func.now() - row.idle_since)
    rows = await view.db.execute(
        select(row, user.username, idle)
        .join(user, user.id == row.owner_id)
        .where(row.status == "running", row.gpus > 0)
    )
    return [
        Reading(
            object_id=environment.id,
            name=f"{environment.name} of {username}",
            value=0.0 if idle_s is None else float(idle_s),
            detail=f"{environment.gpus} GPUs",
            user_id=environment.owner_id,
            customer_id=environment.customer_id,
            workspace_id=environment.workspace_id,
        )
        for environment, username, idle_s in rows
    ]


def _quota(resource: QuotaResource) -> Read:
    async def read(view: View) -> list[Reading]:
        row = tables.Quota
        rows = (
            await view.db.execute(
                select(row, quotas.effective()).where(row.resource == str(resource), quotas.effective() > 0)
            )
        ).all()
        used: dict[quotas.Key, float | None] = {}
        for start in range(0, len(rows), 100):
            part = rows[start : start + 100]
            wanted: dict[quotas.Key, int | None] = {
                (quota.subject_type, quota.subject_id, quota.resource): quota.window_s for quota, _ in part
            }
            used |= await quotas.used(view.db, wanted=wanted)
        return [
            Reading(
                object_id=f"{quota.subject_type}:{quota.subject_id}",
                name=f"{quota.subject_type} {quota.subject_id}",
                value=_percent(used[quota.subject_type, quota.subject_id, quota.resource], limit),
            )
            for quota, limit in rows
        ]

    return read


for _name, _resource, _what in (
    ("quota_gpu_hours_percent", QuotaResource.GPU_HOURS, "GPU-hours used of a limit."),
    ("quota_storage_percent", QuotaResource.STORAGE_BYTES, "Storage used of a limit."),
):
    _signal(
        name=_name,
        object_type="quota",
        unit="%",
        maximum=1000,
        every_s=60.0,
        description=_what,
        advice="Raise the limit, or have something removed. Its people were told.",
    )(_quota(_resource))


@_signal(
    name="estimate_error_s",
    object_type="queue",
    unit="s",
    maximum=30 * 86400,
    every_s=60.0,
    description="Median distance between estimated and real starts of the last 30 days, of 20 or more.",
    advice="Estimates follow the lengths of past runs: see `GET /v1/queue/accuracy`.",
)
async def estimate_error(view: View) -> list[Reading]:
    found = await waits.accuracy(view.db)
    value = (found.median_error_s or 0.0) if found.starts >= 20 else 0.0
    return [Reading(object_id="queue", name="the queue", value=value, detail=f"{found.starts} starts")]


# The server itself


@_signal(
    name="login_failures",
    object_type="sign-in",
    unit="",
    maximum=1e6,
    description="Failed sign-ins of an account or from an address within the window that limits them.",
    advice="Somebody may be guessing: see the audit trail (`remotegpu audit list --outcome refused`).",
)
async def login_failures(view: View) -> list[Reading]:
    """The most first; names are known as hashes only, and shown where an account has the name."""
    failure, user = tables.LoginFailure, tables.User
    counted = (
        select(failure.subject, func.count().label("failures"))
        .where(failure.at > func.now() - timedelta(seconds=view.settings.login_window_s))
        .group_by(failure.subject)
        .order_by(func.count().desc(), failure.subject)
        .limit(200)
        .subquery()
    )
    digest = func.encode(func.sha256(cast(user.username, Bytes)), "hex")
    rows = await view.db.execute(
        select(counted.c.subject, counted.c.failures, user.username).outerjoin(
            user, literal("user:") + digest == counted.c.subject
        )
    )
    readings = []
    for subject, failures, username in rows:
        kind, _, rest = subject.partition(":")
        known = username or (rest if kind == "address" else f"no account ({rest[:8]})")
        readings.append(Reading(object_id=subject, name=f"{kind} {known}", value=float(failures)))
    return readings


@_signal(
    name="database_connections_percent",
    object_type="database",
    unit="%",
    maximum=100,
    description="Connections of the database in use, of those that it allows.",
    advice="Lower REMOTEGPU_POOL_SIZE or raise max_connections.",
    every_s=60.0,
)
async def database_connections(view: View) -> list[Reading]:
    used, allowed = (
        await view.db.execute(
            text(
                "SELECT count(*), current_setting('max_connections')::int FROM pg_stat_activity"
                " WHERE backend_type = 'client backend'"
            )
        )
    ).one()
    value = 100.0 * used / allowed
    return [Reading(object_id="database", name="the database", value=value, detail=f"{used} of {allowed}")]


@_signal(
    name="outbox_waiting_s",
    object_type="outbox",
    unit="s",
    maximum=7 * 86400,
    description="Age of the oldest thing that could not be delivered yet, by channel.",
    advice="Look at the mail server or the webhook's target; `outbox` holds the last error of each.",
    every_s=60.0,
)
async def outbox_waiting(view: View) -> list[Reading]:
    row, hook = tables.OutboxMessage, tables.Webhook
    age = func.extract("epoch", func.now() - func.min(row.created_at))
    tried = or_(row.webhook_id.is_(None), hook.enabled)  # nobody waits for one that its owner switched off
    waits_ = await view.db.execute(
        select(row.channel, age)
        .outerjoin(hook, hook.id == row.webhook_id)
        .where(row.delivered_at.is_(None), row.dead_at.is_(None), tried)
        .group_by(row.channel)
    )
    oldest = {channel: float(age_s) for channel, age_s in waits_}
    return [Reading(object_id=one, name=one, value=oldest.get(one, 0.0)) for one in ("mail", "webhook")]
