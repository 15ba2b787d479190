"""Environments: interactive containers with a notebook server."""

# ruff: noqa: RUF012  pydantic copies mutable defaults; ruff does not see that Wire is a model

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, StringConstraints

from remotegpu.types.hosts import GpuMetrics
from remotegpu.types.queue import Wait
from remotegpu.types.quotas import QuotaLine
from remotegpu.types.wire import Bytes, Name, Table, Text, UtcTime, Wire, WireEnum

if TYPE_CHECKING:
    from pandas import DataFrame

EnvVars = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")],
        Annotated[str, StringConstraints(max_length=32768, pattern=r"^[^\x00]*$")],
    ],
    Field(max_length=256),
]

GpuModels = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=64)]], Field(max_length=16)
]
Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=63)],
        Annotated[str, StringConstraints(max_length=255)],
    ],
    Field(max_length=16),
]

GIB = 2**30

Priority = Annotated[int, Field(ge=1, le=9)]
MinRunS = Annotated[float, Field(ge=0, le=30 * 86400)]


class EnvironmentStatus(WireEnum):
    """What a person is told. Legal moves: ``docs/lifecycle.md``."""

    PENDING = "pending"
    """Waits for capacity; ``reason``, ``queue_position`` and ``message`` say why and how long."""
    STARTING = "starting"
    """Placed; pulling the image, creating, or waiting for the notebook server to answer."""
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """``reason``, ``message`` and ``log_tail`` say why."""
    UNREACHABLE = "unreachable"
    """Was running, and its host is silent; presumed alive, and still holding its GPUs."""
    DELETED = "deleted"
    UNKNOWN = "unknown"


class Reason(WireEnum):
    """Why an environment, a task or an attempt is in its status. Stored with every change."""

    REQUESTED = "requested"
    """Somebody asked for it."""
    NO_FREE_GPU = "no_free_gpu"
    NO_FREE_CPU = "no_free_cpu"
    NO_FREE_MEMORY = "no_free_memory"
    NO_READY_HOST = "no_ready_host"
    NO_MATCHING_HOST = "no_matching_host"
    """No host has the labels or the datasets."""
    START_LATER = "start_later"
    """Waits for the start time that was asked for."""
    RESERVED = "reserved"
    """What is free is promised to others at a time that it would reach into."""
    HUB_START = "hub_start"
    """Its turn has come, and the hub is asked to start its server."""
    HUB_GAVE_UP = "hub_gave_up"
    """The hub did not start the server whose place was kept."""
    PREEMPTED = "preempted"
    """Stopped for a request with a better priority, and back in the queue."""
    QUOTA = "quota"
    """Waits until an own environment gives something back."""
    PLACED = "placed"
    PULLING = "pulling"
    CREATING = "creating"
    WAITING_FOR_SERVER = "waiting_for_server"
    """The container runs; its notebook server does not answer yet."""
    READY = "ready"
    HOST_SILENT = "host_silent"
    HOST_BACK = "host_back"
    EXITED = "exited"
    """The container ended by itself."""
    OUT_OF_MEMORY = "out_of_memory"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_PULL_FAILED = "image_pull_failed"
    START_FAILED = "start_failed"
    """The engine refused to create or start the container."""
    START_TIMEOUT = "start_timeout"
    """The notebook server did not answer in time."""
    HOST_REBOOTED = "host_rebooted"
    HOST_DRAINED = "host_drained"
    """An admin emptied its host."""
    DEDICATION_ENDED = "dedication_ended"
    """The period for which its host was lent is over."""
    WORKLOAD_VANISHED = "workload_vanished"
    """The agent found no container where one should run."""
    FORCED = "forced"
    """An admin released it without proof that it is gone."""
    SUSPENDED = "suspended"
    """Its owner or customer was suspended."""
    RESTARTED = "restarted"
    """A new generation in the same place."""
    STOP_AT = "stop_at"
    """The time that was asked for has come."""
    LIFETIME = "lifetime"
    """It ran as long as it may."""
    IDLE = "idle"
    """Nobody used it, and its GPUs did nothing."""
    DEPENDENCIES = "dependencies"
    """Waits for other tasks."""
    DEPENDENCY_FAILED = "dependency_failed"
    """A task that it waited for did not succeed."""
    ARRAY_LIMIT = "array_limit"
    """As many of its array run as may."""
    RETRY_DELAY = "retry_delay"
    """The last attempt ended badly; the next one follows after a while."""
    SUCCEEDED = "succeeded"
    """Ended with exit code 0."""
    EXIT_CODE = "exit_code"
    """Ended with another exit code."""
    COMMAND_NOT_FOUND = "command_not_found"
    TIMEOUT = "timeout"
    """Ran longer than its ``timeout_s``."""
    CANCELLED = "cancelled"
    """Somebody stopped it."""
    LEASE_LOST = "lease_lost"
    """Its host was silent for longer than the fence, and the attempt was given up."""
    PROCESS_LOST = "process_lost"
    """Its agent came back and found nothing of it."""
    DISK_FULL = "disk_full"
    GANG_FAILED = "gang_failed"
    """Another host of the same task failed, so this one was ended."""
    UNKNOWN = "unknown"


class IdlePolicy(Wire):
    """When an environment counts as unused. What cannot be measured never counts as unused."""

    after_s: Annotated[float, Field(ge=0, le=30 * 86400)]
    """Seconds without use until the warning that announces the stop; 0: never."""
    gpu_below_percent: Annotated[float, Field(ge=0, le=100)] = 5.0
    """A GPU that reaches this utilisation is in use."""
    count_connections: bool = True
    """True: an open connection (a browser, SSH) is use."""


LifetimeS = Annotated[float, Field(ge=60, le=366 * 86400)]


class EnvironmentSpec(Wire):
    """What to run and what it needs."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    """Id, name or reference of an image on the allow-list."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_models: GpuModels = []
    """Any of these; empty: any model. All GPUs of one environment are of one model."""
    gpu_memory_bytes: Annotated[Bytes, Field(ge=2**28)] | None = None
    """A share of one GPU's memory in place of the whole GPU (``gpus`` is 1 then). Soft: the environment is
    told its share in ``REMOTEGPU_GPU_MEMORY_BYTES``, and nothing stops it from taking more."""
    min_gpu_memory_bytes: Annotated[Bytes, Field(ge=0)] | None = None
    """Of the whole GPU, also when a share of it is asked for."""
    max_gpu_memory_bytes: Annotated[Bytes, Field(ge=0)] | None = None
    mig_profile: Annotated[str, StringConstraints(pattern=r"^[0-9a-z.+]{1,32}$")] | None = None
    """MIG instances of this profile, such as ``1g.10gb``, in place of GPUs; as the hosts offer them."""
    host_labels: Labels = {}
    """Only hosts that carry all of these labels with these values."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    memory_bytes: Annotated[Bytes, Field(ge=256 * 2**20)] = 2 * GIB
    workspace: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """Id of the workspace it lives in; left out: the personal one."""
    env: EnvVars = {}
    """Plain environment variables. ``JUPYTERHUB_*``, ``NVIDIA_*``, ``REMOTEGPU_*``, ``LD_*`` and
    ``CUDA_VISIBLE_DEVICES`` are set by the platform and refused here."""
    stop_at: UtcTime | None = None
    """Stop it then, running or waiting."""
    max_lifetime_s: LifetimeS | None = None
    """Stop it so long after it became ready. Left out: the platform's default; never above its ceiling."""
    idle: IdlePolicy | None = None
    """Left out: the platform's default."""
    priority: Priority = 5
    """1 is served first. Who may ask for less than 5 is a platform setting."""
    preemptible: bool = False
    """It may be stopped, with notice, for a request with a better priority; it then waits again."""
    min_run_s: MinRunS = 0.0
    """Seconds it runs at least before that."""
    start_at: UtcTime | None = None
    """Take a place in the queue then."""
    reservation: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """Id of the reservation to run in; left out: an active one of the workspace or customer, if it has room.
    It then stops with the reservation."""


class EnvironmentCreate(EnvironmentSpec):
    """A new environment, started at once."""

    name: Name
    """Unique among the owner's environments."""
    display_name: Text = ""
    queue: bool = True
    """True: wait when nothing is free now. False: answer ``no_capacity`` instead."""
    secret_env: EnvVars = {}
    """Environment variables with secrets, the platform's prefixes allowed: only a service (the hub) may send
    them. Stored encrypted, never answered, wiped when the environment stops."""


class EnvironmentStart(Wire):
    """Start a stopped or failed environment; fields left out keep their last value."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    gpu_models: GpuModels | None = None
    """An empty list means any model."""
    gpu_memory_bytes: Annotated[Bytes, Field(ge=0)] | None = None
    """0: the whole GPU again."""
    min_gpu_memory_bytes: Annotated[Bytes, Field(ge=0)] | None = None
    """0: no lower bound again."""
    max_gpu_memory_bytes: Annotated[Bytes, Field(ge=0)] | None = None
    """0: no upper bound again."""
    mig_profile: Annotated[str, StringConstraints(pattern=r"^[0-9a-z.+]{0,32}$")] | None = None
    """Empty: GPUs again."""
    host_labels: Labels | None = None
    cpus: Annotated[float, Field(gt=0, le=1024)] | None = None
    memory_bytes: Annotated[Bytes, Field(ge=256 * 2**20)] | None = None
    env: EnvVars | None = None
    stop_at: UtcTime | None = None
    """For this start; left out: none."""
    max_lifetime_s: LifetimeS | None = None
    idle: IdlePolicy | None = None
    priority: Priority | None = None
    preemptible: bool | None = None
    min_run_s: MinRunS | None = None
    start_at: UtcTime | None = None
    """For this start; left out: now."""
    reservation: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """For this start; left out: an active one of the workspace or customer, if it has room."""
    queue: bool = True
    secret_env: EnvVars = {}


class EnvironmentUpdate(Wire):
    """Rename it; what is left out stays."""

    name: Name | None = None
    """Refused for a hub server's environment, which the hub finds by its name."""
    display_name: Text | None = None


class EnvironmentExtend(Wire):
    """Put the stop off."""

    by_s: Annotated[float, Field(gt=0, le=366 * 86400)]
    """Seconds after the stop time that it has now."""


class PlaceKeep(Wire):
    """Keep a waiting environment's place for a hub server, which is started when its turn comes."""

    hub_user: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    hub_server: Annotated[str, StringConstraints(max_length=255)] = ""
    """Name of the hub server; empty: the default one."""


class AllocatedGpu(Wire):
    """A GPU that an environment holds."""

    allocation_id: str
    uuid: str
    index: int
    model: str
    memory_total_bytes: Bytes
    memory_bytes: Bytes | None
    """The share that was promised; ``null``: the whole GPU."""
    mig_profile: str | None
    simulated: bool


class Environment(Wire):
    """An interactive container and what holds it."""

    id: str
    name: str
    display_name: str
    owner: str
    """User name."""
    owner_id: str
    customer_id: str
    workspace_id: str
    status: EnvironmentStatus
    reason: Reason
    message: str
    """The same in plain words, with numbers."""
    progress_percent: int | None
    """While an image is pulled."""
    queue_position: int | None
    """1 is next; ``null`` unless it waits for its turn."""
    wait: Wait | None
    """While it waits: why, how long, and what would start it now."""
    priority: int
    preemptible: bool
    min_run_s: float
    start_at: UtcTime | None
    reservation_id: str | None
    """The reservation it runs in, and stops with."""
    preempt_at: UtcTime | None
    """It will be stopped then for a request with a better priority, and waits in the queue again."""
    generation: int
    """Grows with every start; a late report of an older start changes nothing."""
    image: str
    """Name of the image."""
    image_reference: str
    gpus: int
    gpu_models: list[str]
    gpu_memory_bytes: Bytes | None
    min_gpu_memory_bytes: Bytes | None
    max_gpu_memory_bytes: Bytes | None
    mig_profile: str | None
    host_labels: dict[str, str]
    cpus: float
    memory_bytes: Bytes
    env: dict[str, str]
    host_id: str | None
    host_name: str | None
    allocated_gpus: list[AllocatedGpu]
    simulated: bool
    """True when it runs on simulated GPUs."""
    address: str | None
    """``http://host:port`` where the hub's proxy reaches the notebook server, while it runs."""
    exit_code: int | None
    log_tail: str | None
    """The last lines of the container that failed."""
    created_at: UtcTime
    started_at: UtcTime | None
    """When the current generation became ready."""
    stopped_at: UtcTime | None
    stop_at: UtcTime | None
    """As it was asked for, or put off to."""
    max_lifetime_s: float | None
    idle: IdlePolicy | None
    """``null``: unused time stops nothing."""
    idle_since: UtcTime | None
    """Since when it was seen unused; ``null`` when it is in use or that cannot be told."""
    stops_at: UtcTime | None
    """When it will be stopped, as things stand: the earliest of ``stop_at``, the lifetime's end and an
    announced idle stop. ``:extend`` puts it off."""


class JupyterAccess(Wire):
    """The way to the notebook."""

    url: str | None
    """Through the hub; ``null`` where the server was not told the hub's address, or no hub started it."""
    path: str | None
    """Its path in the hub."""
    address: str
    """``http://host:port`` as the hub's proxy reaches it."""


class SshAccess(Wire):
    """The way in by SSH, with a key that was registered before (``remotegpu ssh-key add``)."""

    host: str
    port: int
    username: str
    command: str


class PortAccess(Wire):
    """Something else that the environment's image offers."""

    name: str
    host: str
    port: int


class EnvironmentAccess(Wire):
    """How to reach an environment that runs. Holds no credential."""

    environment_id: str
    jupyter: JupyterAccess
    ssh: SshAccess | None
    ssh_note: str | None
    """Why there is no SSH, or what is still missing."""
    desktop: PortAccess | None
    ports: list[PortAccess]


class EnvironmentLogs(Wire):
    """The newest output of an environment's container."""

    text: str
    truncated: bool
    """True when older lines were left out."""
    live: bool
    """False: the container is gone and this is what was kept of it."""


class GpuUsage(Wire):
    """One GPU of an environment, now and over the last minutes."""

    uuid: str
    model: str
    simulated: bool
    memory_total_bytes: Bytes
    now: GpuMetrics | None
    workload_memory_bytes: Bytes | None
    """Device memory held by this environment's own processes, where the driver tells."""
    history: list[GpuSample]
    """Oldest first, at most the last ten minutes."""


class GpuSample(Wire):
    """One point of a sparkline."""

    at: UtcTime
    utilization_percent: float | None
    memory_used_bytes: Bytes | None


class EnvironmentUsage(Table):
    """What an environment uses, as its host's agent measured it."""

    ROWS: ClassVar[str] = "gpus"

    environment_id: str
    sampled_at: UtcTime | None
    gpus: list[GpuUsage]
    cpu_percent: float | None
    """Of one CPU: 200 means two CPUs busy."""
    memory_used_bytes: Bytes | None
    memory_limit_bytes: Bytes
    started_at: UtcTime | None

    def to_pandas(self) -> DataFrame:
        """The history of its GPUs: a row for each GPU and sample, oldest first.

        :raises remotegpu.errors.MissingExtra: pandas is not installed.
        """
        from remotegpu import _frames

        points = [(gpu, sample) for gpu in self.gpus for sample in gpu.history]
        first: dict[str, list[object]] = {
            "gpu_uuid": [gpu.uuid for gpu, _ in points],
            "gpu_model": [gpu.model for gpu, _ in points],
            "simulated": [gpu.simulated for gpu, _ in points],
        }
        return _frames.frame(GpuSample, [sample for _, sample in points], first=first)


class PlacementOutcome(WireEnum):
    """What would happen to a request."""

    STARTS_NOW = "starts_now"
    WAITS = "waits"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class PlacementExplanation(Wire):
    """What would happen if this request were submitted now. Nothing is reserved."""

    outcome: PlacementOutcome
    message: str
    """One sentence for a person."""
    error: str | None
    """The code the request would be refused with."""
    reason: Reason | None
    """Why it would wait."""
    queue_position: int | None
    wait: Wait | None
    """How it would wait."""
    host_name: str | None
    """Where it would start."""
    home_note: str | None
    """Set when the files of an earlier environment lie on another host and would not be there."""
    quota: list[QuotaLine]
    """The limits that bind the caller, before this request."""
