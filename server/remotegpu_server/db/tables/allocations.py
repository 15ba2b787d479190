"""Who holds what: placements and the GPUs that hang on them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, Xid8, now, one_of


class Placement(Base):
    """A live hold of CPU, memory and a home on one host by one start of an environment, or by an attempt.

    Released exactly once, on proof of absence; GPUs hang on it as :class:`Allocation` rows.
    """

    __tablename__ = "placements"
    __table_args__ = (
        UniqueConstraint("id", "host_id"),
        Index(
            "uq_placements_live_environment",
            "environment_id",
            unique=True,
            postgresql_where=text("released_at IS NULL"),
        ),
        CheckConstraint("(environment_id IS NULL) <> (attempt_id IS NULL)", name="of_one_workload"),
        Index(
            "uq_placements_attempt",
            "attempt_id",
            unique=True,
            postgresql_where=text("attempt_id IS NOT NULL"),
        ),
        Index("ix_placements_live_host", "host_id", postgresql_where=text("released_at IS NULL")),
        Index(
            "ix_placements_environment",
            "environment_id",
            postgresql_where=text("environment_id IS NOT NULL"),
        ),
        Index("ix_placements_released", "released_at", postgresql_where=text("released_at IS NOT NULL")),
        Index("ix_placements_volume", "volume_id", "released_at"),
        Index("ix_placements_admin_host", "host_id", postgresql_where=text("release_proof = 'admin'")),
        Index("ix_placements_live_user", "user_id", postgresql_where=text("released_at IS NULL")),
        Index("ix_placements_live_customer", "customer_id", postgresql_where=text("released_at IS NULL")),
        Index("ix_placements_live_workspace", "workspace_id", postgresql_where=text("released_at IS NULL")),
        CheckConstraint("(released_at IS NULL) = (release_proof IS NULL)", name="released_with_proof"),
        one_of("release_proof", "absent", "reboot", "fence", "admin"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    environment_id: Mapped[str | None] = mapped_column(ForeignKey("environments.id", ondelete="RESTRICT"))
    attempt_id: Mapped[str | None] = mapped_column(Text, ForeignKey("attempts.id", ondelete="RESTRICT"))
    generation: Mapped[int] = mapped_column(BigInteger)
    """Of the environment, or the number of the attempt."""
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="RESTRICT"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="RESTRICT"))
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="RESTRICT"))
    cpus: Mapped[float]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    queued_at: Mapped[datetime | None]
    """When the start was asked for; ``NULL`` in rows older than this column."""
    placed_at: Mapped[datetime] = mapped_column(server_default=now)
    released_at: Mapped[datetime | None]
    release_proof: Mapped[str | None]


class Allocation(Base):
    """A live promise of one GPU, or of a share of its memory, to one placement: the unit of exclusivity.

    The partial unique index decides who gets a whole GPU, and the trigger ``allocation_fits`` keeps shares
    within it, whatever the callers believe.
    """

    __tablename__ = "allocations"
    __table_args__ = (
        ForeignKeyConstraint(["gpu_id", "host_id"], ["gpus.id", "gpus.host_id"], ondelete="RESTRICT"),
        ForeignKeyConstraint(
            ["placement_id", "host_id"], ["placements.id", "placements.host_id"], ondelete="RESTRICT"
        ),
        Index(
            "uq_allocations_live_gpu",
            "gpu_id",
            unique=True,
            postgresql_where=text("released_at IS NULL AND memory_bytes IS NULL"),
        ),
        Index("ix_allocations_live_gpu", "gpu_id", postgresql_where=text("released_at IS NULL")),
        CheckConstraint("memory_bytes IS NULL OR memory_bytes > 0", name="share_is_something"),
        CheckConstraint("gpu_fraction > 0 AND gpu_fraction <= 1", name="fraction_of_one"),
        CheckConstraint("(environment_id IS NULL) <> (attempt_id IS NULL)", name="of_one_workload"),
        Index("ix_allocations_attempt", "attempt_id", postgresql_where=text("attempt_id IS NOT NULL")),
        Index("ix_allocations_placement", "placement_id"),
        Index("ix_allocations_live_user", "user_id", postgresql_where=text("released_at IS NULL")),
        Index("ix_allocations_live_customer", "customer_id", postgresql_where=text("released_at IS NULL")),
        Index("ix_allocations_live_workspace", "workspace_id", postgresql_where=text("released_at IS NULL")),
        Index("ix_allocations_customer_released", "customer_id", "released_at"),
        CheckConstraint("(released_at IS NULL) = (release_proof IS NULL)", name="released_with_proof"),
        one_of("release_proof", "absent", "reboot", "fence", "admin"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    gpu_id: Mapped[str]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """A share of the GPU's memory; ``NULL``: the whole GPU."""
    gpu_fraction: Mapped[float] = mapped_column(server_default=text("1"))
    """How much of a GPU it counts as, against quotas and in statistics."""
    host_id: Mapped[str]
    placement_id: Mapped[str]
    environment_id: Mapped[str | None] = mapped_column(
        ForeignKey("environments.id", ondelete="RESTRICT"), index=True
    )
    attempt_id: Mapped[str | None] = mapped_column(Text, ForeignKey("attempts.id", ondelete="RESTRICT"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="RESTRICT"))
    allocated_at: Mapped[datetime] = mapped_column(server_default=now)
    released_at: Mapped[datetime | None]
    release_proof: Mapped[str | None]


class CapacityChange(Base):
    """A host on which something changed what is free; written by triggers, read to keep fleets fresh.

    Readers take the rows whose transaction their last snapshot did not see. Swept after minutes.
    """

    __tablename__ = "capacity_changes"
    __table_args__ = (Index("ix_capacity_changes_xid", "xid"), Index("ix_capacity_changes_at", "at"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    xid: Mapped[str] = mapped_column(Xid8(), server_default=func.pg_current_xact_id())
    host_id: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=now)
