"""Hosts, their GPUs, and what is free."""

# ruff: noqa: RUF012  pydantic copies mutable defaults; ruff does not see that Wire is a model

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, IPvAnyAddress, StringConstraints

from remotegpu.types.wire import Bytes, Labels, Name, Table, Text, UtcTime, Wire, WireEnum

Hostname = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]

HostKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
"""Id or name."""


class Connection(WireEnum):
    """What the server knows of the agent's presence."""

    NEVER = "never"
    """No agent has registered yet."""
    ONLINE = "online"
    SUSPECT = "suspect"
    """Heartbeats are missing: no new work is placed, nothing else changes."""
    UNREACHABLE = "unreachable"
    """Silent for longer; its workloads are presumed alive."""
    LOST = "lost"
    """Silent for minutes: somebody should look. Its workloads are still presumed alive, and never moved."""
    UNKNOWN = "unknown"


class Operational(WireEnum):
    """What an admin wants of a host. Legal moves: ``docs/lifecycle.md``."""

    PENDING = "pending"
    """Waits for an agent to join."""
    AVAILABLE = "available"
    CORDONED = "cordoned"
    """Takes no new work; what runs goes on."""
    DRAINING = "draining"
    """Takes no new work, and what runs is stopped at the deadline."""
    MAINTENANCE = "maintenance"
    """Empty, and out of service for a while."""
    RETIRED = "retired"
    """Empty, and out of service for good."""
    UNKNOWN = "unknown"


class HostHealth(WireEnum):
    """The server's judgement of a host's GPUs, disk and runtime when it was last heard."""

    UNKNOWN = "unknown"
    """Nothing was reported yet."""
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """A part of it is broken; the rest takes work."""
    FAULTY = "faulty"
    """Takes no new work."""


class HostVerb(WireEnum):
    """What an admin does to a host."""

    CORDON = "cordon"
    UNCORDON = "uncordon"
    DRAIN = "drain"
    MAINTENANCE = "maintenance"
    ACTIVATE = "activate"
    RETIRE = "retire"


class RuntimeKind(WireEnum):
    """How the agent runs workloads."""

    DOCKER = "docker"
    PROCESS = "process"
    """Supervised process groups without container isolation: evaluation and CPU-only tests."""
    SLURM = "slurm"
    """Jobs on a node of an existing Slurm: tasks only, no environments."""
    UNKNOWN = "unknown"


class ThrottleReason(WireEnum):
    """What holds the clocks of a GPU down."""

    IDLE = "idle"
    APPLICATIONS_CLOCKS = "applications_clocks"
    POWER_CAP = "power_cap"
    HW_SLOWDOWN = "hw_slowdown"
    SYNC_BOOST = "sync_boost"
    SW_THERMAL = "sw_thermal"
    HW_THERMAL = "hw_thermal"
    HW_POWER_BRAKE = "hw_power_brake"
    DISPLAY_CLOCKS = "display_clocks"
    UNKNOWN = "unknown"


class GpuHealth(WireEnum):
    """Whether new work may be placed on a GPU."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    """A fatal XID, uncorrected ECC errors or a lost device; see ``health_reason``."""
    MISSING = "missing"
    """Was reported before, and is not any more."""
    UNKNOWN = "unknown"


class HostCreate(Wire):
    """A host that an agent will join."""

    name: Name
    labels: Labels = {}
    """``region`` is one like any other."""
    hostname: Hostname | None = None
    """Unique. Left out: what the agent's first inventory says, if no other host has it."""
    ip_address: IPvAnyAddress | None = None
    """Unique. Left out: the same."""


class HostImport(Wire):
    """Hosts to add from a CSV sheet: a first line with ``name`` and any of ``hostname``, ``ip_address``,
    ``labels`` (``key=value;key=value``), then a host a line, at most 1000.
    """

    csv: Annotated[str, StringConstraints(min_length=1, max_length=900_000)]
    dry_run: bool = False
    """True: say what would become of each line, and add nothing."""


class HostUpdate(Wire):
    """Fields left out stay as they are."""

    labels: Labels | None = None
    hostname: Hostname | None = None
    ip_address: IPvAnyAddress | None = None


class HostReason(Wire):
    """Why an admin does it: shown with the host, and to the users who are told."""

    reason: Text = ""


class HostDrain(Wire):
    """How a host is emptied."""

    deadline_s: Annotated[int, Field(ge=0, le=30 * 86400)] | None = None
    """After so many seconds what still runs is stopped; left out: it is only waited for."""
    message: Text = ""
    """For the users who are told."""


class CredentialRotate(Wire):
    """How a host's credential is renewed."""

    overlap_s: Annotated[int, Field(ge=0, le=7 * 86400)] = 3600
    """How long the old one still works."""


class HostCredential(Wire):
    """A new credential of a host's agent, shown this once."""

    host_id: str
    secret: str
    old_ends_in_s: int


class HostBatch(Wire):
    """One verb for many hosts."""

    verb: HostVerb
    hosts: Annotated[list[HostKey], Field(min_length=1, max_length=200)]
    """Ids or names."""
    reason: Text = ""
    deadline_s: Annotated[int, Field(ge=0, le=30 * 86400)] | None = None
    """Of a drain."""


Measure = Annotated[float, Field(allow_inf_nan=False, ge=-1e18, le=1e18)]
"""Bounded, so that sums of many are still numbers."""
Count = Annotated[int, Field(ge=0, le=2**62)]


class GpuMetrics(Wire):
    """What NVML said of one GPU, at last. ``null`` where the driver does not say; never 0 in its place."""

    utilization_percent: Measure | None = None
    """Share of time with a kernel running, mean over the heartbeat's samples."""
    utilization_max_percent: Measure | None = None
    memory_utilization_percent: Measure | None = None
    """Share of time device memory was read or written."""
    encoder_utilization_percent: Measure | None = None
    decoder_utilization_percent: Measure | None = None
    memory_used_bytes: Bytes | None = None
    memory_total_bytes: Bytes | None = None
    temperature_c: Measure | None = None
    memory_temperature_c: Measure | None = None
    power_w: Measure | None = None
    power_limit_w: Measure | None = None
    energy_j: Measure | None = None
    """Since the driver was loaded."""
    sm_clock_mhz: Measure | None = None
    memory_clock_mhz: Measure | None = None
    throttle_reasons: Annotated[list[ThrottleReason], Field(max_length=16)] | None = None
    """What holds its clocks down; empty: nothing."""
    pcie_rx_bytes_per_s: Measure | None = None
    pcie_tx_bytes_per_s: Measure | None = None
    pcie_replays: Measure | None = None
    """Since the driver was loaded."""
    nvlink_rx_bytes_per_s: Measure | None = None
    """All links together."""
    nvlink_tx_bytes_per_s: Measure | None = None
    ecc_corrected: Count | None = None
    """Since the driver was loaded (volatile counter)."""
    ecc_uncorrected: Count | None = None
    remapped_rows: Count | None = None
    """Rows of memory that were replaced after uncorrectable errors."""
    xid: Count | None = None
    """The last XID seen since the agent started."""


class Gpu(Wire):
    """One GPU of a host."""

    id: str
    host_id: str
    host_name: str
    uuid: str
    index: int
    model: str
    """Short model name as used in requests, such as ``A100-80GB``."""
    product: str
    """The driver's name, such as ``NVIDIA A100-SXM4-80GB``."""
    memory_total_bytes: Bytes
    memory_free_bytes: Bytes
    """Not promised to anybody: all of it, nothing, or what shares have left."""
    shares: int
    """Environments that hold a share of its memory; they are not named here."""
    mig_profile: str | None
    parent_uuid: str | None
    """Of a MIG instance."""
    mig_enabled: bool
    """Divided into instances: they take work, it does not."""
    numa_node: int | None
    nvlink_group: int | None
    """GPUs of one host with the same number reach each other over NVLink."""
    simulated: bool
    health: GpuHealth
    health_reason: str | None
    health_since: UtcTime
    free: bool
    """No live allocation, healthy, and its host takes new work."""
    allocation_id: str | None
    environment_id: str | None
    """What holds it; ``null`` when free, held by a task, or when the holder is not the caller's to see."""
    task_id: str | None
    """What holds it, if that is a task, under the same rule."""
    holder: str | None
    """User name of the holder, under the same rule."""
    metrics: GpuMetrics | None
    """``null`` until the first heartbeat, and while the host is silent."""
    sampled_at: UtcTime | None


class GpuCheck(Wire):
    """A self-test that the GPU's agent was asked for; the event ``gpu.health`` tells the result."""

    id: str
    gpu_id: str
    requested_at: UtcTime


class GpuRestore(Wire):
    """An admin's word that a GPU takes work again."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class HostMetrics(Wire):
    """Load of a whole host, at last; rates are means since the heartbeat before."""

    cpu_percent: Measure | None = None
    """Of all logical CPUs together, 0 to 100."""
    memory_used_bytes: Bytes | None = None
    memory_total_bytes: Bytes | None = None
    swap_used_bytes: Bytes | None = None
    disk_used_bytes: Bytes | None = None
    disk_total_bytes: Bytes | None = None
    """Of the file system that holds the homes."""
    root_disk_used_bytes: Bytes | None = None
    root_disk_total_bytes: Bytes | None = None
    """Of the file system ``/``."""
    disk_read_bytes_per_s: Measure | None = None
    disk_write_bytes_per_s: Measure | None = None
    load_1m: Measure | None = None
    load_5m: Measure | None = None
    load_15m: Measure | None = None
    network_rx_bytes_per_s: Measure | None = None
    network_tx_bytes_per_s: Measure | None = None


class Host(Wire):
    """A machine with one agent."""

    id: str
    name: str
    labels: dict[str, str]
    connection: Connection
    operational: Operational
    operational_reason: str | None
    operational_since: UtcTime
    drain_deadline: UtcTime | None
    """When what still runs on a draining host is stopped."""
    drained_at: UtcTime | None
    """When the last environment of a draining host had ended."""
    health: HostHealth
    health_reason: str | None
    ready: bool
    """Available, online, not faulty, inventory complete, runtime healthy: takes new work."""
    not_ready_reason: str | None
    runtime: RuntimeKind | None
    runtime_detail: str | None
    """Engine version, or why the engine does not answer."""
    simulated: bool
    """True when its GPUs are simulated."""
    agent_version: str | None
    hostname: str | None
    ip_address: str | None
    address: str | None
    """Where the hub's proxy reaches environments on this host."""
    os: str | None
    driver_version: str | None
    cuda_version: str | None
    cpus: int | None
    memory_bytes: Bytes | None
    cpus_free: float | None
    memory_free_bytes: Bytes | None
    gpus_total: int
    gpus_free: int
    shared_home: str | None
    """Name of the shared home root mounted on this host, or ``null`` for homes on the host's own disk."""
    metrics: HostMetrics | None
    last_heartbeat_at: UtcTime | None
    created_at: UtcTime


class EnrollmentTokenCreate(Wire):
    """A token with which one agent may join this host."""

    expires_in_s: Annotated[int, Field(ge=60, le=3600)] = 3600


class EnrollmentToken(Wire):
    """Shown once; single use."""

    host_id: str
    secret: str
    expires_at: UtcTime


class ModelCapacity(Wire):
    """Free and total GPUs of one model over all hosts that the caller may use."""

    model: str
    memory_total_bytes: Bytes
    simulated: bool
    total: int
    free: int
    largest_free_on_one_host: int
    """The most GPUs of this model that one environment could get right now."""
    largest_free_share_bytes: Bytes
    """The largest soft share of one GPU's memory that could be had right now; 0: none."""


class MigCapacity(Wire):
    """Free and total MIG instances of one profile on GPUs of one model, as the hosts offer them."""

    profile: str
    """As ``mig_profile`` of an environment names it, such as ``1g.10gb``."""
    model: str
    memory_total_bytes: Bytes
    simulated: bool
    total: int
    free: int
    largest_free_on_one_host: int
    """The most of these instances that one environment could get right now."""


class Capacity(Table):
    """What could start now. Says nothing about other people's work."""

    ROWS: ClassVar[str] = "gpu_models"

    gpu_models: list[ModelCapacity]
    mig_profiles: list[MigCapacity]
    cpus_free_on_one_host: float
    memory_free_bytes_on_one_host: Bytes
    hosts_ready: int
    hosts_total: int
    pending_environments: int
    """Requests that wait for capacity."""
    pending_tasks: int
    """Also those that wait for other tasks, for their time or for a retry."""
