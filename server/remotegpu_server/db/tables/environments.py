"""Interactive containers and their homes."""

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
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of


class Environment(Base):
    """An interactive container. The API writes ``desired``; agents' reports write ``observed``; ``status``
    is their projection, written by ``environments.lifecycle`` alone and guarded by a trigger.
    """

    __tablename__ = "environments"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "customer_id"], ["workspaces.id", "workspaces.customer_id"], ondelete="RESTRICT"
        ),
        one_of("desired", "running", "stopped", "deleted"),
        one_of(
            "observed",
            "absent",
            "pulling",
            "creating",
            "starting",
            "running",
            "stopping",
            "exited",
            "failed",
            "unknown",
        ),
        one_of(
            "status",
            "pending",
            "starting",
            "running",
            "stopping",
            "stopped",
            "failed",
            "unreachable",
            "deleted",
        ),
        CheckConstraint("gpus >= 0 AND cpus > 0 AND memory_bytes > 0", name="sizes"),
        CheckConstraint(
            "gpu_memory_bytes IS NULL OR (gpus = 1 AND mig_profile IS NULL)", name="one_gpu_is_shared"
        ),
        one_of("idle_stage", "notice", "warned"),
        CheckConstraint(
            "(idle_stop_at IS NOT NULL) <= (idle_stage IS NOT DISTINCT FROM 'warned')",
            name="idle_warned_first",
        ),
        CheckConstraint("priority BETWEEN 1 AND 9", name="priority_known"),
        Index(
            "uq_environments_owner_name",
            "owner_id",
            "name",
            unique=True,
            postgresql_where=text("status <> 'deleted'"),
        ),
        Index("ix_environments_wanted", "owner_id", postgresql_where=text("desired = 'running'")),
        Index("ix_environments_pending", "queued_at", postgresql_where=text("status = 'pending'")),
        Index(
            "ix_environments_deadline",
            "deadline_at",
            postgresql_where=text("deadline_at IS NOT NULL AND desired = 'running'"),
        ),
        Index(
            "ix_environments_reservation",
            "reservation_id",
            postgresql_where=text("reservation_id IS NOT NULL"),
        ),
        Index("ix_environments_customer", "customer_id"),
        Index("ix_environments_workspace", "workspace_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"), index=True)
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    workspace_id: Mapped[str]
    name: Mapped[str]
    display_name: Mapped[str]
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id", ondelete="RESTRICT"))
    gpus: Mapped[int] = mapped_column(Integer)
    gpu_models: Mapped[list[str]] = mapped_column(server_default=text("'{}'::text[]"))
    """Any of these; empty: any."""
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """A share of one GPU in place of the whole."""
    min_gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    mig_profile: Mapped[str | None]
    host_labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    cpus: Mapped[float]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    env: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    secret_env: Mapped[bytes | None]
    """Encrypted; wiped when the environment stops."""
    desired: Mapped[str]
    observed: Mapped[str] = mapped_column(server_default="absent")
    status: Mapped[str]
    reason: Mapped[str]
    message: Mapped[str]
    progress_percent: Mapped[int | None] = mapped_column(Integer)
    generation: Mapped[int] = mapped_column(BigInteger, server_default="1")
    address: Mapped[str | None]
    exit_code: Mapped[int | None] = mapped_column(Integer)
    log_tail: Mapped[str | None]
    queued_at: Mapped[datetime] = mapped_column(server_default=now)
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    started_at: Mapped[datetime | None]
    stopped_at: Mapped[datetime | None]
    hub_managed: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """The hub started it and finds it by its name."""
    endpoints: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """By name (``ssh``), ``host:port`` of what its image offers besides the notebook; while it runs."""
    stop_at: Mapped[datetime | None]
    max_lifetime_s: Mapped[float | None]
    deadline_at: Mapped[datetime | None]
    """The stop time of this generation: ``stop_at``, from readiness on also the lifetime's end; put off by
    extensions."""
    deadline_warned_s: Mapped[float | None]
    """The last warning that was given, in seconds before the deadline."""
    idle_policy: Mapped[dict[str, Any] | None]
    idle_since: Mapped[datetime | None]
    idle_stage: Mapped[str | None]
    idle_stop_at: Mapped[datetime | None]
    priority: Mapped[int] = mapped_column(Integer, server_default="5")
    """1 is served first."""
    preemptible: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    min_run_s: Mapped[float] = mapped_column(server_default="0")
    """It is not preempted before it has run so long."""
    start_at: Mapped[datetime | None]
    """It waits until then, without a place in the queue."""
    reservation_id: Mapped[str | None] = mapped_column(ForeignKey("reservations.id", ondelete="RESTRICT"))
    preempt_at: Mapped[datetime | None]
    """When it will be stopped for a request with a better priority; announced to its owner."""
    outlook: Mapped[dict[str, Any] | None]
    """What the last pass over the queue could say about a waiting start: the wire type ``Wait``."""


class LogRequest(Base):
    """A reader waits for a container's output; the agent answers over its long poll. Swept after a minute."""

    __tablename__ = "log_requests"
    __table_args__ = (Index("ix_log_requests_open", "host_id", postgresql_where=text("answered_at IS NULL")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"))
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"))
    tail_lines: Mapped[int] = mapped_column(Integer)
    text: Mapped[str | None]
    truncated: Mapped[bool | None] = mapped_column(Boolean)
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    answered_at: Mapped[datetime | None]
