"""Machines, their GPUs and what they measure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of


class Host(Base):
    """A machine with one agent."""

    __tablename__ = "hosts"
    __table_args__ = (
        one_of("operational", "pending", "available", "cordoned", "draining", "maintenance", "retired"),
        one_of("connection", "never", "online", "suspect", "unreachable", "lost"),
        one_of("health", "unknown", "healthy", "degraded", "faulty"),
        CheckConstraint("epoch >= 0", name="epoch_grows"),
        CheckConstraint("drain_deadline IS NULL OR operational = 'draining'", name="deadline_of_drain"),
        UniqueConstraint("hostname"),
        UniqueConstraint("ip_address"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    hostname: Mapped[str | None]
    ip_address: Mapped[str | None]
    """Both as an admin says, else as the first inventory told; no two hosts share one."""
    operational: Mapped[str] = mapped_column(server_default="pending")
    """What an admin wants of it; moved by ``hosts.lifecycle`` alone and guarded by a trigger."""
    operational_reason: Mapped[str | None]
    operational_since: Mapped[datetime] = mapped_column(server_default=now)
    drain_deadline: Mapped[datetime | None]
    """When a draining host's environments are stopped; ``NULL``: never, it only waits."""
    drained_at: Mapped[datetime | None]
    """When the last environment of a draining host had ended."""
    connection: Mapped[str] = mapped_column(server_default="never")
    health: Mapped[str] = mapped_column(server_default="unknown")
    """The last judgement of its GPUs, disk and runtime; ``connection`` says whether it is current."""
    health_reason: Mapped[str | None]
    duplicate_since: Mapped[datetime | None]
    """Set while several agents are believed to use this host's credential; a new credential clears it."""
    disk_full: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    epoch: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """The current agent session; every agent write must carry it."""
    revision: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Of the desired set; grows in the transaction that changes it."""
    machine_id: Mapped[str | None]
    boot_id: Mapped[str | None]
    agent_version: Mapped[str | None]
    inventory: Mapped[dict[str, Any] | None]
    """The last full inventory, as sent (without its GPUs, which have rows)."""
    cpus: Mapped[int | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    runtime: Mapped[str | None]
    runtime_healthy: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    runtime_detail: Mapped[str | None]
    address: Mapped[str | None]
    shared_home: Mapped[str | None]
    keys_digest: Mapped[str] = mapped_column(server_default="")
    """Of the authorised SSH keys in the desired set at its revision."""
    quarantined: Mapped[list[str]] = mapped_column(server_default=text("'{}'::text[]"))
    last_heartbeat_at: Mapped[datetime | None]
    heartbeat_sequence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """The highest number of a heartbeat in this session."""
    registered_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class _Samples:
    """What was measured of a host, one row for all its GPUs and workloads. No key to ``hosts``: partitions
    are dropped as a whole, and a row may come in a moment after its host was deleted.
    """

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805
        return (Index(None, "at"), {"postgresql_partition_by": "RANGE (at)"})

    host_id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(Integer, server_default="1")
    """Heartbeats in it."""
    host: Mapped[dict[str, Any]]
    """The wire type ``HostMetrics``; as below, ``mean`` and ``highest`` hold what differs from the last."""
    gpus: Mapped[dict[str, Any]]
    """By GPU UUID: the wire type ``GpuMetrics``."""
    workloads: Mapped[dict[str, Any]]
    """By workload id: the wire type ``WorkloadMetrics``."""


class HostSample(_Samples, Base):
    """A heartbeat; ``at`` is its receipt."""

    __tablename__ = "host_samples"


class HostSampleMinute(_Samples, Base):
    """A minute, by its begin."""

    __tablename__ = "host_sample_minutes"


class HostSampleHour(_Samples, Base):
    """An hour, by its begin."""

    __tablename__ = "host_sample_hours"


class Gpu(Base):
    """One GPU, or one MIG instance. Rows appear only from an agent's inventory."""

    __tablename__ = "gpus"
    __table_args__ = (
        UniqueConstraint("id", "host_id"),
        one_of("health", "healthy", "unhealthy", "missing"),
        CheckConstraint("(mig_profile IS NULL) = (parent_uuid IS NULL)", name="instance_has_parent"),
        CheckConstraint("gpu_fraction > 0 AND gpu_fraction <= 1", name="fraction_of_one"),
        Index("ix_gpus_host", "host_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="RESTRICT"))
    uuid: Mapped[str] = mapped_column(unique=True)
    index: Mapped[int] = mapped_column(Integer)
    model: Mapped[str]
    product: Mapped[str]
    memory_total_bytes: Mapped[int] = mapped_column(BigInteger)
    pci_bus_id: Mapped[str | None]
    numa_node: Mapped[int | None] = mapped_column(Integer)
    nvlink_group: Mapped[int | None] = mapped_column(Integer)
    """GPUs of one host with the same number reach each other over NVLink."""
    mig_enabled: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """Divided: its instances take work, it does not."""
    mig_profile: Mapped[str | None]
    """Of a MIG instance, which is a row of its own."""
    parent_uuid: Mapped[str | None]
    gpu_fraction: Mapped[float] = mapped_column(server_default=text("1"))
    """How much of a GPU it counts as: less than 1 for a MIG instance."""
    simulated: Mapped[bool] = mapped_column(Boolean)
    health: Mapped[str] = mapped_column(server_default="healthy")
    health_reason: Mapped[str | None]
    health_since: Mapped[datetime] = mapped_column(server_default=now)
    evidence: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """The measurements behind ``health_reason``."""
    accepted_reason: Mapped[str | None]
    """A reason that a check or an admin has answered: only another one takes the GPU out again."""


class GpuCheck(Base):
    """A self-test that an admin asked for; the agent answers over its long poll."""

    __tablename__ = "gpu_checks"
    __table_args__ = (
        CheckConstraint("(answered_at IS NULL) = (passed IS NULL)", name="answered_with_result"),
        Index("uq_gpu_checks_open", "gpu_id", unique=True, postgresql_where=text("answered_at IS NULL")),
        Index("ix_gpu_checks_open_host", "host_id", postgresql_where=text("answered_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    gpu_id: Mapped[str] = mapped_column(ForeignKey("gpus.id", ondelete="CASCADE"))
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"))
    requested_by: Mapped[str]
    requested_at: Mapped[datetime] = mapped_column(server_default=now)
    answered_at: Mapped[datetime | None]
    passed: Mapped[bool | None] = mapped_column(Boolean)
    detail: Mapped[str | None]
