"""Tasks: commands that run to their end on a host, and the attempts to run them."""

# ruff: noqa: RUF012  pydantic copies mutable defaults; ruff does not see that Wire is a model

from __future__ import annotations

import base64
from typing import Annotated

from pydantic import Field, StringConstraints

from remotegpu.types.environments import AllocatedGpu, EnvVars, GpuModels, MinRunS, Priority, Reason
from remotegpu.types.environments import Labels as HostLabels
from remotegpu.types.queue import Wait
from remotegpu.types.wire import Bytes, Labels, Name, UtcTime, Wire, WireEnum

GIB = 2**30
Argument = Annotated[str, StringConstraints(max_length=131_072, pattern=r"^[^\x00]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Script = Annotated[str, StringConstraints(min_length=1, max_length=262_144, pattern=r"^[^\x00]*$")]


class TaskStatus(WireEnum):
    """What a person is told. Legal moves: ``docs/lifecycle.md``."""

    PENDING = "pending"
    """Waits: for its turn, for other tasks, for its start time, or before a retry; ``reason`` says which."""
    ASSIGNED = "assigned"
    """Placed on a host that has not started it yet."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    UNKNOWN = "unknown"


class AttemptStatus(WireEnum):
    """Where a try stands."""

    ASSIGNED = "assigned"
    """Placed; its host has not asked for it yet."""
    CLAIMED = "claimed"
    """Its host has it, and has not confirmed it yet."""
    ACCEPTED = "accepted"
    """Confirmed under a lease; the host prepares it (pulls the image)."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    """Its host was silent for longer than the fence."""
    PREEMPTED = "preempted"
    """Ended for a request with a better priority, or because its host was emptied; it costs no retry."""
    UNKNOWN = "unknown"


class RetryOn(WireEnum):
    """Outcomes after which another attempt may follow."""

    LOST = "lost"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    UNKNOWN = "unknown"


class DependencyCondition(WireEnum):
    """What must have become of another task."""

    AFTER_OK = "after_ok"
    """It succeeded; if it ends otherwise, this task is cancelled."""
    AFTER_ANY = "after_any"
    """It ended, in whatever way."""
    UNKNOWN = "unknown"


class Dependency(Wire):
    """Wait for another task."""

    task_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    condition: DependencyCondition = DependencyCondition.AFTER_OK


class TaskArray(Wire):
    """The same task many times; each is told its number in ``REMOTEGPU_ARRAY_INDEX``."""

    size: Annotated[int, Field(ge=1)]
    """Numbered from 0. The platform has a ceiling."""
    max_parallel: Annotated[int, Field(ge=1)] | None = None
    """At most so many of them hold resources at a time; left out: no limit."""


class TaskSpec(Wire):
    """What to run and what it needs."""

    name: Name = "task"
    """For people; need not be unique."""
    image: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    """Id, name or reference of an image on the allow-list."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=1024)] | None = None
    """The program and its arguments, run as they are, without a shell. Or give a ``script``."""
    script: Script | None = None
    """Text that the image's ``sh`` runs, or the program that a first line such as ``#!/usr/bin/env python3``
    names."""
    working_dir: Annotated[str, StringConstraints(max_length=1024, pattern=r"^(/[^\x00]*)?$")] = ""
    """Absolute path inside the container; empty: the home."""
    env: EnvVars = {}
    """Environment variables; those the platform sets are refused, as for environments."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_models: GpuModels = []
    gpu_memory_bytes: Annotated[Bytes, Field(ge=2**28)] | None = None
    """A share of one GPU's memory in place of the whole GPU, as for environments."""
    min_gpu_memory_bytes: Annotated[Bytes, Field(ge=0)] | None = None
    max_gpu_memory_bytes: Annotated[Bytes, Field(ge=0)] | None = None
    mig_profile: Annotated[str, StringConstraints(pattern=r"^[0-9a-z.+]{1,32}$")] | None = None
    host_labels: HostLabels = {}
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    memory_bytes: Annotated[Bytes, Field(ge=64 * 2**20)] = 2 * GIB
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Hosts at once, each with these GPUs; all or nothing, and one failure ends all. Each is told
    ``MASTER_ADDR``, ``MASTER_PORT``, ``NNODES`` and ``NODE_RANK``, as ``torchrun`` expects them."""
    workspace: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """Id of the workspace it lives in; left out: the personal one."""
    labels: Labels = {}
    """For people and filters; placement looks at ``host_labels``."""
    priority: Priority = 5
    preemptible: bool = False
    min_run_s: MinRunS = 0.0
    start_at: UtcTime | None = None
    reservation: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    timeout_s: Annotated[float, Field(ge=1, le=366 * 86400)] = 3600.0
    """End it so long after its start; each attempt has the whole time."""
    stop_grace_s: Annotated[float, Field(ge=0, le=600)] = 30.0
    """Between TERM and KILL."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Attempts after the first."""
    retry_delay_s: Annotated[float, Field(ge=0, le=86400)] = 10.0
    """Before the first retry; doubled for each further one, up to an hour."""
    retry_on: Annotated[list[RetryOn], Field(max_length=3)] = [RetryOn.LOST]


class TaskCreate(TaskSpec):
    """Submit a task, or an array of them."""

    depends_on: Annotated[list[Dependency], Field(max_length=100)] = []
    array: TaskArray | None = None
    input_sha256: Sha256 | None = None
    """A file that was sent before (``PUT /v1/task-inputs``). The task may read it at the path in
    ``REMOTEGPU_INPUT``."""


class AttemptHost(Wire):
    """A host that an attempt runs on."""

    rank: int
    """0 unless the task asked for several nodes."""
    host_id: str
    host_name: str
    allocated_gpus: list[AllocatedGpu]


class TaskAttempt(Wire):
    """One try of a task on one host (of several, with ``nodes``: one of the hosts)."""

    id: str
    task_id: str
    number: int
    """1 is the first try."""
    rank: int
    status: AttemptStatus
    reason: Reason
    message: str
    host_id: str
    host_name: str
    exit_code: int | None
    peak_gpu_memory_bytes: Bytes | None
    """Of all its GPUs together; ``null`` where the driver did not tell, or nobody measured."""
    peak_memory_bytes: Bytes | None
    gpu_seconds: float
    """GPUs times seconds that it held them."""
    late: bool
    """Its lease has run out; it is lost if its host stays silent."""
    log_bytes: Bytes
    log_truncated: bool
    """Output above the cap was dropped; the text says where."""
    created_at: UtcTime
    claimed_at: UtcTime | None
    started_at: UtcTime | None
    finished_at: UtcTime | None
    released_at: UtcTime | None
    """When its GPUs were proven free."""


class Task(Wire):
    """A task and where it stands."""

    id: str
    name: str
    owner: str
    owner_id: str
    customer_id: str
    workspace_id: str
    status: TaskStatus
    reason: Reason
    message: str
    """The same in plain words, with numbers."""
    stop_requested: bool
    queue_position: int | None
    """1 is next; ``null`` unless it waits for its turn."""
    wait: Wait | None
    progress: float | None
    """0 to 1, as the task said with ``remotegpu.report_progress``."""
    progress_message: str
    exit_code: int | None
    """Of the last attempt that ended."""
    attempt: int
    """Number of the present or last attempt; 0 before the first."""
    image: str
    command: list[str] | None
    input_sha256: str | None
    """Of the file that was sent for it to read."""
    input_size_bytes: Bytes | None
    script: str | None
    """It may be large, so lists and the answer to a submit leave it out: ``null``, as ``command`` is. ``get``
    has it."""
    working_dir: str
    env: dict[str, str]
    gpus: int
    gpu_models: list[str]
    gpu_memory_bytes: Bytes | None
    min_gpu_memory_bytes: Bytes | None
    max_gpu_memory_bytes: Bytes | None
    mig_profile: str | None
    host_labels: dict[str, str]
    cpus: float
    memory_bytes: Bytes
    nodes: int
    labels: dict[str, str]
    priority: int
    preemptible: bool
    min_run_s: float
    preempt_at: UtcTime | None
    start_at: UtcTime | None
    reservation_id: str | None
    timeout_s: float
    stop_grace_s: float
    max_retries: int
    retry_delay_s: float
    retry_on: list[RetryOn]
    depends_on: list[Dependency]
    array_id: str | None
    array_index: int | None
    schedule_id: str | None
    hosts: list[AttemptHost]
    """Where it is now; empty unless it is assigned or runs."""
    simulated: bool
    """True when it runs on simulated GPUs."""
    created_at: UtcTime
    queued_at: UtcTime
    started_at: UtcTime | None
    """Of the present or last attempt."""
    finished_at: UtcTime | None
    deadline_at: UtcTime | None
    """When the timeout ends the present attempt."""


class TaskSubmitted(Wire):
    """What was made: one task, or the tasks of an array."""

    tasks: list[Task]
    """At most the first hundred of an array."""
    array_id: str | None
    count: int


class TaskLogs(Wire):
    """A part of an attempt's output."""

    task_id: str
    attempt: int
    """Number of the attempt; 0: there is none yet."""
    rank: int
    offset: int
    """Place of the first byte."""
    next_offset: int
    """Where to go on."""
    size_bytes: Bytes
    """Of all output so far."""
    truncated: bool
    """Output above the cap was dropped; a line at the end says so."""
    complete: bool
    """Nothing more will come."""
    data: str
    """The bytes, in base64: a program may write anything."""

    @property
    def content(self) -> bytes:
        """The bytes."""
        return base64.b64decode(self.data)

    @property
    def text(self) -> str:
        """The same as text; what is no UTF-8 is replaced."""
        return self.content.decode(errors="replace")


class TaskLogEnd(Wire):
    """The last message of a stream of output."""

    attempt: int
    """0: there was none."""
    status: AttemptStatus | None
    size_bytes: Bytes
    truncated: bool
    more: bool
    """The task has not ended: another attempt may follow."""


class Artifact(Wire):
    """A file that an attempt left in ``/output``."""

    id: str
    task_id: str
    attempt: int
    rank: int
    path: str
    """Below ``/output``."""
    size_bytes: Bytes
    sha256: str
    created_at: UtcTime


class TaskInput(Wire):
    """A file that is sent for tasks to read, and how far that is."""

    sha256: str
    size_bytes: Bytes
    received_bytes: Bytes
    """Send on from there."""
    complete: bool
    """All of it is there, and its checksum fits: tasks may name it."""


class TaskInputRoom(Wire):
    """What may be sent for tasks to read."""

    max_bytes: Bytes
    """Of one file."""
    total_max_bytes: Bytes
    """Of all files of one user; those that no task needs give way to new ones."""
    total_used_bytes: Bytes


class ArtifactDownload(Wire):
    """How far a download is."""

    path: str
    received_bytes: Bytes
    size_bytes: Bytes


class TaskArrayState(Wire):
    """An array of tasks, and how many of them stand where."""

    id: str
    name: str
    owner: str
    owner_id: str
    workspace_id: str
    size: int
    max_parallel: int | None
    counts: dict[str, int]
    """Tasks by status; a status that none has is left out."""
    created_at: UtcTime
