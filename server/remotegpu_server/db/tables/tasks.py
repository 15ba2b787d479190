"""Tasks, the attempts to run them, and what ties tasks together."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of

_ENDED = "status IN ('succeeded', 'failed', 'cancelled', 'timed_out')"
LIVE_ATTEMPT = "status IN ('assigned', 'claimed', 'accepted', 'running')"
"""Of :class:`Attempt`; as text, since a partial index helps a query that repeats its predicate."""
UNRELEASED_ATTEMPT = "rendezvous_port IS NOT NULL AND (finished_at IS NULL OR lost_at IS NOT NULL)"
"""Of an :class:`Attempt` with a port: something of it may be left on its host."""


class TaskArray(Base):
    """Tasks that were submitted together."""

    __tablename__ = "task_arrays"
    __table_args__ = (CheckConstraint("size > 0 AND max_parallel > 0", name="sizes"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(Integer)
    max_parallel: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class TaskSchedule(Base):
    """Submits a task again and again, at the times of a cron expression."""

    __tablename__ = "task_schedules"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "customer_id"], ["workspaces.id", "workspaces.customer_id"], ondelete="RESTRICT"
        ),
        one_of("overlap", "skip", "allow"),
        Index("uq_task_schedules_owner_name", "owner_id", "name", unique=True),
        Index("ix_task_schedules_due", "next_at", postgresql_where=text("enabled")),
        Index("ix_task_schedules_workspace", "workspace_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    workspace_id: Mapped[str]
    name: Mapped[str]
    cron: Mapped[str]
    time_zone: Mapped[str]
    overlap: Mapped[str]
    """What happens while the last one has not ended."""
    spec: Mapped[dict[str, Any]]
    """The wire type ``TaskSpec``."""
    enabled: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    next_at: Mapped[datetime | None]
    last_at: Mapped[datetime | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class Task(Base):
    """A command that runs to its end. What it asks of a host, and its place in the queue, are columns that
    :class:`Environment` has too. ``status`` is written by ``tasks.lifecycle`` alone, guarded by a trigger.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "customer_id"], ["workspaces.id", "workspaces.customer_id"], ondelete="RESTRICT"
        ),
        one_of("status", "pending", "assigned", "running", "succeeded", "failed", "cancelled", "timed_out"),
        CheckConstraint(
            "gpus >= 0 AND cpus > 0 AND memory_bytes > 0 AND nodes BETWEEN 1 AND 64", name="sizes"
        ),
        CheckConstraint(
            "gpu_memory_bytes IS NULL OR (gpus = 1 AND mig_profile IS NULL)", name="one_gpu_is_shared"
        ),
        CheckConstraint("(command IS NULL) <> (script IS NULL)", name="command_or_script"),
        CheckConstraint("priority BETWEEN 1 AND 9", name="priority_known"),
        CheckConstraint(f"({_ENDED}) = (finished_at IS NOT NULL)", name="finished"),
        CheckConstraint("(array_id IS NULL) = (array_index IS NULL)", name="numbered_in_array"),
        CheckConstraint("progress BETWEEN 0 AND 1", name="progress_part"),
        CheckConstraint("(input_sha256 IS NULL) = (input_size_bytes IS NULL)", name="input_whole"),
        Index("uq_tasks_array_index", "array_id", "array_index", unique=True),
        Index("ix_tasks_pending", "queued_at", postgresql_where=text("status = 'pending'")),
        Index("ix_tasks_owner", "owner_id", "created_at"),
        Index("ix_tasks_customer_status", "customer_id", "status"),
        Index("ix_tasks_workspace", "workspace_id", "created_at"),
        Index("ix_tasks_live", "status", postgresql_where=text(f"NOT ({_ENDED})")),
        Index("ix_tasks_schedule", "schedule_id", postgresql_where=text("schedule_id IS NOT NULL")),
        Index("ix_tasks_reservation", "reservation_id", postgresql_where=text("reservation_id IS NOT NULL")),
        Index("ix_tasks_labels", "labels", postgresql_using="gin"),
        Index(
            "ix_tasks_input",
            "owner_id",
            "input_sha256",
            postgresql_where=text("input_sha256 IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    workspace_id: Mapped[str]
    name: Mapped[str]
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id", ondelete="RESTRICT"))
    command: Mapped[list[str] | None]
    script: Mapped[str | None]
    input_sha256: Mapped[str | None]
    """Content of a :class:`TaskInput` of its owner, which may be gone once the task has ended."""
    input_size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    working_dir: Mapped[str] = mapped_column(server_default="")
    env: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    nodes: Mapped[int] = mapped_column(Integer, server_default="1")
    gpus: Mapped[int] = mapped_column(Integer)
    gpu_models: Mapped[list[str]] = mapped_column(server_default=text("'{}'::text[]"))
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    min_gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    mig_profile: Mapped[str | None]
    host_labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    cpus: Mapped[float]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(server_default="pending")
    reason: Mapped[str]
    message: Mapped[str]
    stop_requested_at: Mapped[datetime | None]
    generation: Mapped[int] = mapped_column(BigInteger, server_default="1")
    """Number of the attempt that it waits for, has or had last."""
    retries: Mapped[int] = mapped_column(Integer, server_default="0")
    """Of ``max_retries``, used."""
    progress: Mapped[float | None]
    progress_message: Mapped[str] = mapped_column(server_default="")
    exit_code: Mapped[int | None] = mapped_column(Integer)
    priority: Mapped[int] = mapped_column(Integer, server_default="5")
    preemptible: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    min_run_s: Mapped[float] = mapped_column(server_default="0")
    start_at: Mapped[datetime | None]
    """It has no place in the queue before: as it was asked for, or the end of a retry delay."""
    reservation_id: Mapped[str | None] = mapped_column(ForeignKey("reservations.id", ondelete="RESTRICT"))
    preempt_at: Mapped[datetime | None]
    outlook: Mapped[dict[str, Any] | None]
    stop_at: Mapped[datetime | None]
    """End of the reservation that it runs in."""
    max_lifetime_s: Mapped[float]
    """The timeout of an attempt."""
    deadline_at: Mapped[datetime | None]
    """When the present attempt is ended."""
    stop_grace_s: Mapped[float]
    max_retries: Mapped[int] = mapped_column(Integer)
    retry_delay_s: Mapped[float]
    retry_on: Mapped[list[str]]
    array_id: Mapped[str | None] = mapped_column(ForeignKey("task_arrays.id", ondelete="RESTRICT"))
    array_index: Mapped[int | None] = mapped_column(Integer)
    schedule_id: Mapped[str | None] = mapped_column(ForeignKey("task_schedules.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    queued_at: Mapped[datetime] = mapped_column(server_default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class TaskDependency(Base):
    """One task waits for another one."""

    __tablename__ = "task_dependencies"
    __table_args__ = (
        one_of("condition", "after_ok", "after_any"),
        CheckConstraint("task_id <> after_id", name="not_itself"),
        Index("ix_task_dependencies_after", "after_id"),
    )

    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    after_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    condition: Mapped[str]


class Attempt(Base):
    """What one host does of a try of a task; its id fences every write about it.

    A try is all rows of one number: one for each rank, on different hosts. ``status`` is written by
    ``attempts.lifecycle`` alone and guarded by a trigger; one that has ended is never written again, except
    for what its agent measured and for its proof of absence, which is its placement's.
    """

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("task_id", "number", "rank"),
        one_of(
            "status",
            "assigned",
            "claimed",
            "accepted",
            "running",
            "succeeded",
            "failed",
            "cancelled",
            "timed_out",
            "lost",
            "preempted",
        ),
        CheckConstraint(f"({LIVE_ATTEMPT}) = (finished_at IS NULL)", name="finished"),
        CheckConstraint(
            "status IN ('assigned', 'lost', 'cancelled', 'preempted', 'failed') OR claimed_at IS NOT NULL",
            name="claimed_first",
        ),
        Index(
            "uq_attempts_live_task",
            "task_id",
            "rank",
            unique=True,
            postgresql_where=text(LIVE_ATTEMPT),
        ),
        Index("uq_attempts_host_of_try", "task_id", "number", "host_id", unique=True),
        Index(
            "uq_attempts_rendezvous",
            "rendezvous_address",
            "rendezvous_port",
            unique=True,
            postgresql_where=text(UNRELEASED_ATTEMPT),
        ),
        CheckConstraint(
            "(rendezvous_address IS NULL) = (rendezvous_port IS NULL)"
            " AND (rendezvous_port IS NULL OR rank = 0)",
            name="rendezvous_at_rank_0",
        ),
        Index("ix_attempts_claimable", "host_id", "created_at", postgresql_where=text("status = 'assigned'")),
        Index("ix_attempts_live_host", "host_id", postgresql_where=text("finished_at IS NULL")),
        Index("ix_attempts_lost", "lost_at", postgresql_where=text("lost_at IS NOT NULL")),
        Index("ix_attempts_output", "finished_at", postgresql_where=text("output_removed_at IS NULL")),
        Index(
            "ix_attempts_request", "host_id", "request_id", postgresql_where=text("request_id IS NOT NULL")
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="RESTRICT"))
    number: Mapped[int] = mapped_column(BigInteger)
    rank: Mapped[int] = mapped_column(Integer, server_default="0")
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="RESTRICT"))
    status: Mapped[str] = mapped_column(server_default="assigned")
    reason: Mapped[str] = mapped_column(server_default="placed")
    message: Mapped[str] = mapped_column(server_default="")
    stop_reason: Mapped[str | None]
    """Set: its agent is told to end it, for this reason."""
    ready_at: Mapped[datetime | None]
    """Of a task on several hosts: its host could start it at once, and waits for the others."""
    rendezvous_address: Mapped[str | None]
    rendezvous_port: Mapped[int | None] = mapped_column(Integer)
    """Of rank 0 of several: where the others find it. No other try has the port until all are released."""
    request_id: Mapped[str | None]
    """Of the claim that took it."""
    epoch: Mapped[int | None] = mapped_column(BigInteger)
    """Session of its agent that wrote last."""
    secret_env: Mapped[bytes | None]
    """Encrypted; wiped when it has ended."""
    lease_expires_at: Mapped[datetime | None]
    lost_at: Mapped[datetime | None]
    """When it is given up, or taken for gone, if its agent says nothing more; ``NULL`` when released."""
    exit_code: Mapped[int | None] = mapped_column(Integer)
    peak_gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    log_sequence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Number of the next piece of output."""
    log_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    log_truncated: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    output_removed_at: Mapped[datetime | None]
    """Its output and artifacts are gone, because it ended long ago."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    claimed_at: Mapped[datetime | None]
    accepted_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Artifact(Base):
    """A file that an attempt left behind; its bytes are the blob ``artifacts/<attempt>/<id>``."""

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("attempt_id", "path"),
        CheckConstraint("size_bytes >= 0 AND received_bytes BETWEEN 0 AND size_bytes", name="sizes"),
        CheckConstraint("completed_at IS NULL OR received_bytes = size_bytes", name="complete"),
        CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_known"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    path: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    received_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completed_at: Mapped[datetime | None]
    """Its checksum was found right."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class TaskInput(Base):
    """A file that somebody sent before the tasks that read it; its bytes are the blob ``inputs/<id>``."""

    __tablename__ = "task_inputs"
    __table_args__ = (
        CheckConstraint("size_bytes > 0 AND received_bytes BETWEEN 0 AND size_bytes", name="sizes"),
        CheckConstraint("completed_at IS NULL OR received_bytes = size_bytes", name="complete"),
        CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_known"),
        Index(
            "uq_task_inputs_owner_sha256",
            "owner_id",
            "sha256",
            unique=True,
            postgresql_where=text("removing_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    received_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completed_at: Mapped[datetime | None]
    """Its checksum was found right."""
    used_at: Mapped[datetime] = mapped_column(server_default=now)
    """When a piece of it came, or a task took it."""
    removing_at: Mapped[datetime | None]
    """Its bytes are being removed, and the row goes after them."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)
