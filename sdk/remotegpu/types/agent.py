"""The agent protocol. Agents dial out; every write carries the session epoch, and a workload's generation."""

# ruff: noqa: RUF012  pydantic copies mutable defaults; ruff does not see that Wire is a model

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from remotegpu.types.hosts import Count, GpuMetrics, HostMetrics, Measure, RuntimeKind
from remotegpu.types.wire import Bytes, UtcTime, Wire, WireEnum

Line = Annotated[str, StringConstraints(max_length=256)]
HostPort = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:\[\]-]{1,250}:[0-9]{1,5}$")]
WorkloadId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Aggregates = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,47}$")], Measure], Field(max_length=32)
]
"""Mean or highest of measurements, by their names."""
Uuid = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{4,80}$")]


class Enroll(Wire):
    """Join a host with its one-time token (sent as bearer)."""

    hostname: Line
    machine_id: Line
    """``/etc/machine-id`` or its replacement; two hosts with one id are two agents on one machine."""
    agent_version: Line


class Enrolled(Wire):
    """The host's credential, shown this once."""

    host_id: str
    host_name: str
    credential: str


class InventoryGpu(Wire):
    """One GPU as the driver describes it."""

    uuid: Uuid
    index: Annotated[int, Field(ge=0, le=255)]
    model: Line
    product: Line
    memory_total_bytes: Bytes
    pci_bus_id: Line | None
    mig_enabled: bool | None
    numa_node: int | None
    nvlink_group: int | None = None
    """GPUs of this host with the same number reach each other over NVLink."""
    mig_profile: Line | None = None
    """Set for a MIG instance, which is listed beside its parent and takes work in its place."""
    parent_uuid: Uuid | None = None
    simulated: bool


class Inventory(Wire):
    """Everything placement needs to know of a host."""

    hostname: Line
    os: Line
    kernel: Line
    cpus: Annotated[int, Field(ge=1, le=4096)]
    memory_bytes: Bytes
    disk_total_bytes: Bytes
    gpus: Annotated[list[InventoryGpu], Field(max_length=64)]
    driver_version: Line | None
    cuda_version: Line | None
    runtime: RuntimeKind
    runtime_healthy: bool
    runtime_detail: Line
    """Engine version, or why it does not answer."""
    images: Annotated[list[Line], Field(max_length=1000)]
    """References present on the host."""
    address: Line
    """Where the hub's proxy reaches environments on this host."""
    shared_home: Line | None
    """Name of the shared home root, or ``null``."""
    metrics_address: HostPort | None = None
    """Where its ``/metrics`` is, if it has one."""


class SessionCreate(Wire):
    """Register: a new lifetime of the agent process on its host."""

    boot_id: Line
    agent_version: Line
    labels: dict[str, str] = {}
    inventory: Inventory
    previous_epoch: int | None = None
    """Of the session of this host that the same agent had before: a restart, and no second agent."""
    workloads: list[ObservedWorkload]
    """What was found running, so that nothing is placed on a GPU in use."""


class Session(Wire):
    """The answer to a registration."""

    host_id: str
    epoch: int
    """Carried by every later write; a newer session makes older epochs stale."""
    next_in_s: float
    """When to send the first heartbeat."""


class Observed(WireEnum):
    """What an agent sees of a workload."""

    ABSENT = "absent"
    """Proof that nothing of it is left on the host: this releases its GPUs."""
    PULLING = "pulling"
    CREATING = "creating"
    STARTING = "starting"
    """The container runs; its server does not answer yet."""
    RUNNING = "running"
    """The server answers."""
    STOPPING = "stopping"
    EXITED = "exited"
    """Ended by itself and not yet removed; still holds its GPUs until ``absent``."""
    FAILED = "failed"
    """Could not be created or started; nothing of it runs."""
    UNKNOWN = "unknown"


class ObservedWorkload(Wire):
    """The state of one workload as the agent sees it."""

    workload_id: str
    generation: int
    observed: Observed
    reason: Line | None = None
    """A value of :class:`remotegpu.types.environments.Reason`."""
    message: Annotated[str, StringConstraints(max_length=2048)] = ""
    progress_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    address: Line | None = None
    """``http://host:port`` once the server answers."""
    endpoints: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,15}$")], HostPort],
        Field(max_length=8),
    ] = {}
    """By name (``ssh``, ``desktop``), what its image offers besides the notebook."""
    exit_code: int | None = None
    log_tail: Annotated[str, StringConstraints(max_length=16384)] | None = None
    gpu_uuids: list[Uuid] = []
    image_digest: Line | None = None
    """The content the container was made from."""


class Observation(ObservedWorkload):
    """One report about one workload."""

    epoch: int


class WorkloadMetrics(Wire):
    """What one workload uses: an environment, or an attempt of a task."""

    workload_id: WorkloadId
    cpu_percent: Measure | None
    """Of one CPU."""
    memory_used_bytes: Bytes | None
    gpu_memory_bytes: dict[Uuid, Bytes]
    """Device memory of its processes by GPU, where the driver tells."""
    gpu_utilization_percent: dict[Uuid, Measure] = {}
    """Of its processes by GPU, where the driver tells."""
    peak_memory_bytes: Bytes | None = None
    """The highest since its start, as far as its agent saw."""
    peak_gpu_memory_bytes: Bytes | None = None
    """Of all its GPUs together, the same."""
    connections: Count | None = None
    """Open connections to its notebook and SSH server."""
    kernel_idle_s: Annotated[Measure, Field(ge=0)] | None = None
    """Seconds since its kernels were last active, where its notebook server tells without a token."""


class HeartbeatGpu(Wire):
    """Metrics of one GPU."""

    uuid: Uuid
    metrics: GpuMetrics
    mean: Aggregates = {}
    """Over the samples since the last heartbeat, by the names of ``metrics``."""
    highest: Aggregates = {}
    unhealthy_reason: Line | None = None
    """Set when the device must not take new work: fatal XID, uncorrected ECC, lost from the bus."""


class Heartbeat(Wire):
    """I am alive, and this is what I measured. Absent values are ``null``."""

    epoch: int
    sequence: Annotated[int, Field(ge=1, le=2**62)] | None = None
    """Counts the heartbeats of a session: one that was repeated or overtaken is known by it."""
    sampled_at: UtcTime
    """By the host's clock; the server uses its own time for every decision."""
    runtime_healthy: bool
    runtime_detail: Line
    host: HostMetrics
    host_mean: Aggregates = {}
    """Over the samples since the last heartbeat, by the names of ``host``."""
    host_highest: Aggregates = {}
    gpus: Annotated[list[HeartbeatGpu], Field(max_length=64)]
    workloads: Annotated[list[WorkloadMetrics], Field(max_length=1000)]
    observed: Annotated[list[ObservedWorkload], Field(max_length=1000)]
    quarantined: Annotated[list[Line], Field(max_length=1000)] = []
    """Containers with our labels that no desired workload explains; left alone and reported."""


class HeartbeatReply(Wire):
    """The server paces its agents."""

    next_in_s: float
    revision: int
    """Of the host's desired set; differs from the last one seen: fetch it."""


class DesiredState(WireEnum):
    """What the agent must make true."""

    RUNNING = "running"
    ABSENT = "absent"
    """Stop it (TERM, grace, KILL), remove it, and report ``absent``. Volumes stay."""
    UNKNOWN = "unknown"


class HomeVolume(Wire):
    """The owner's home: outlives every container."""

    volume_id: str
    shared: bool
    """True: lies under the shared root and is the same on every host that mounts it."""


class Workload(Wire):
    """One workload of a host, complete: the agent needs nothing else to run it."""

    id: str
    generation: int
    desired: DesiredState
    name: str
    owner: str
    image_reference: str
    image_digest: str | None
    command: list[str] | None
    """``null``: the image's own."""
    env: dict[str, str]
    secret_env: dict[str, str]
    """Never in labels, logs or argv."""
    gpu_uuids: list[str]
    cpus: float
    memory_bytes: Bytes
    authorized_keys: list[str] = []
    """Who may enter it by SSH: complete lines. They change while it runs, within one generation."""
    home: HomeVolume
    port: int
    """Where the server listens inside its network."""
    stop_grace_s: float
    start_timeout_s: float


class LogRequest(Wire):
    """Somebody wants to read a container's output."""

    id: str
    workload_id: str
    tail_lines: int


class GpuCheckRequest(Wire):
    """An admin wants to know whether a GPU works."""

    id: str
    gpu_uuid: str


class GpuCheckAnswer(Wire):
    """What the self-test of a GPU found."""

    epoch: int
    passed: bool
    detail: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Why it failed."""


class VolumeRemoval(Wire):
    """A home must leave this host's disk, or the shared root."""

    id: str
    volume_id: str
    shared: bool


class VolumeRemovalAnswer(Wire):
    """Whether a home is gone from the disk."""

    epoch: int
    removed: bool
    detail: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Why it could not be removed."""


class VolumeSize(Wire):
    """What a home takes of the disk: allocated blocks, hard links once, other file systems not at all."""

    epoch: int
    size_bytes: Bytes | None
    """``null``: it could not be measured."""
    detail: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Why it could not be measured."""


class ImageSaveRequest(Wire):
    """A running container's file system must become an image. Gone from the list: stop saving it."""

    id: str
    workload_id: str
    generation: int
    reference: Line
    """Name of the image on this host."""
    max_bytes: Bytes
    """Larger than this, the save fails."""


class ImageSaveReport(Wire):
    """How far a save is. ``image_id`` is there once it is done, ``reason`` once it has failed."""

    epoch: int
    progress_bytes: Bytes
    image_id: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    reason: Line | None = None
    """A value of :class:`remotegpu.types.image_saves.ImageSaveReason`."""
    detail: Annotated[str, StringConstraints(max_length=1024)] = ""


class TaskClaim(Wire):
    """Ask for attempts that were placed on this host."""

    epoch: int
    request_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{8,64}$")]
    """New for each claim, and the same when an answer was lost: it then answers the same set."""
    max_attempts: Annotated[int, Field(ge=1, le=100)]
    """No more than can be started."""
    wait_s: Annotated[float, Field(ge=0, le=55)] = 0.0
    """Held so long while there is nothing."""


class AttemptInput(Wire):
    """A file that an attempt reads."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Bytes


GANG_PORTS = range(29500, 30000)
"""Where ranks 0 listen. Below the ports that Linux gives to outgoing connections."""


class Gang(Wire):
    """What an attempt of a task on several hosts is told of the others."""

    nodes: int
    """Ranks are 0 to one less."""
    address: str
    """Where the host of rank 0 is reached."""
    port: int
    """There, one of ``GANG_PORTS``: kept for rank 0 alone."""


class ClaimedAttempt(Wire):
    """One attempt, complete: the agent needs nothing else to run it."""

    id: str
    task_id: str
    number: int
    rank: int
    gang: Gang | None
    """Of a task on several hosts: start nothing before an answer says ``go``."""
    name: str
    owner: str
    image_reference: str
    image_digest: str | None
    command: list[str] | None
    script: str | None
    working_dir: str
    """Empty: the home."""
    env: dict[str, str]
    secret_env: dict[str, str]
    """Never in labels, logs or argv."""
    gpu_uuids: list[str]
    cpus: float
    memory_bytes: Bytes
    home: HomeVolume
    timeout_s: float
    stop_grace_s: float
    log_cap_bytes: Bytes
    """Output above this is dropped, with a mark; the writer is not disturbed."""
    artifacts_max_bytes: Bytes
    """What is kept of ``/output``, all files together: one that is larger need not be read."""
    input: AttemptInput | None = None
    """Fetch it before the start, and name its place in ``REMOTEGPU_INPUT``."""


class ClaimedAttempts(Wire):
    """The answer to a claim."""

    attempts: list[ClaimedAttempt]
    next_in_s: float
    """When to claim again, at the soonest."""


class AttemptWrite(Wire):
    """What every write about an attempt carries."""

    epoch: int


class AttemptRenewal(AttemptWrite):
    """It is still being worked on."""

    ready: bool = False
    """Of a task on several hosts: everything is there, it could start at once."""


class AttemptStart(AttemptWrite):
    """It runs."""

    detail: Line = ""
    """What its engine calls it, and which devices it gave it: ``Job 17 of Slurm on node1, GPUs 0,1.``"""


class AttemptLease(Wire):
    """How long the agent may go on without an answer, from the moment it sent the request."""

    lease_s: float
    renew_in_s: float
    """When to renew, at the latest."""
    fence_s: float
    """When to end the attempt by itself: TERM."""
    fence_grace_s: float
    """And KILL so long after that, whatever grace the task asked for."""
    stop: bool
    """End it: TERM, grace, KILL, then ``complete`` and ``release``."""
    stop_reason: str | None
    """A value of :class:`remotegpu.types.environments.Reason`."""
    go: bool
    """It may be started: on all hosts of its task everything is ready."""


class AttemptProgress(AttemptWrite):
    """How far it is, in its own words."""

    progress: Annotated[float, Field(ge=0, le=1)] | None
    message: Annotated[str, StringConstraints(max_length=1024)] = ""


class AttemptLogs(AttemptWrite):
    """The next piece of its output. Sequence numbers count from 0 without a gap."""

    sequence: Annotated[int, Field(ge=0)]
    data: Annotated[str, StringConstraints(max_length=1_400_000)]
    """Base64 of at most 1 MiB of output, both streams as they came."""
    truncated: bool = False
    """Output after this piece is dropped: the cap was reached."""


class AttemptLogsReply(Wire):
    """What the server has."""

    next_sequence: int
    """Lower than expected: send again from there. Higher: those before are stored."""
    next_in_s: float


class ArtifactReply(Wire):
    """What the server has of a file."""

    received_bytes: Bytes
    """Send on from there."""
    complete: bool
    """All of it, and its checksum fits."""


class AttemptResult(AttemptWrite):
    """How it ended. The same result again changes nothing."""

    status: AttemptOutcome
    exit_code: int | None = None
    reason: Line
    """A value of :class:`remotegpu.types.environments.Reason`."""
    message: Annotated[str, StringConstraints(max_length=2048)] = ""
    peak_gpu_memory_bytes: Bytes | None = None
    peak_memory_bytes: Bytes | None = None


class AttemptOutcome(WireEnum):
    """How an attempt ended, as its agent saw it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    PREEMPTED = "preempted"
    LOST = "lost"
    UNKNOWN = "unknown"


class GrantedAttempt(Wire):
    """An attempt that its host may run. What runs and is not listed must end."""

    id: str
    stop: bool
    stop_reason: str | None


class DesiredWorkloads(Wire):
    """The full desired set of a host at a revision: levels, not commands."""

    revision: int
    attempts: list[GrantedAttempt]
    """Claimed ones that have not ended."""
    claimable: int
    """Attempts that wait to be claimed."""
    workloads: list[Workload]
    log_requests: list[LogRequest]
    gpu_checks: list[GpuCheckRequest]
    volume_removals: list[VolumeRemoval]
    volume_measurements: list[HomeVolume]
    """Homes whose size this host measures now, one after the other."""
    image_saves: list[ImageSaveRequest]


class LogAnswer(Wire):
    """The output that was asked for."""

    epoch: int
    text: Annotated[str, StringConstraints(max_length=1_000_000)]
    truncated: bool
