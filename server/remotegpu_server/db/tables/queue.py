"""Promises for later, estimates that were given, and places kept for hub servers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of


class Reservation(Base):
    """GPUs promised to a customer, or to one of its workspaces, for a period."""

    __tablename__ = "reservations"
    __table_args__ = (
        one_of("state", "scheduled", "active", "ended", "unused", "cancelled"),
        CheckConstraint("gpus > 0 AND ends_at > starts_at", name="sizes"),
        CheckConstraint("(state IN ('scheduled', 'active')) = (ended_at IS NULL)", name="ended_at_when_over"),
        Index("ix_reservations_open", "starts_at", "ends_at", postgresql_where=text("ended_at IS NULL")),
        Index("ix_reservations_customer", "customer_id", "starts_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    workspace_id: Mapped[str | None] = mapped_column(ForeignKey("workspaces.id", ondelete="RESTRICT"))
    """``None``: every workspace of the customer may use it."""
    gpus: Mapped[int] = mapped_column(Integer)
    gpu_model: Mapped[str | None]
    host_labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    state: Mapped[str] = mapped_column(server_default="scheduled")
    created_by: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    used_at: Mapped[datetime | None]
    """When the first environment started in it."""
    ended_at: Mapped[datetime | None]


class StartEstimate(Base):
    """The first estimate that a waiting start was given, and when it really started."""

    __tablename__ = "start_estimates"
    __table_args__ = (
        CheckConstraint("p50_at <= p90_at", name="ordered"),
        Index("ix_start_estimates_open", "ask_id", postgresql_where=text("started_at IS NULL")),
        Index("ix_start_estimates_started", "started_at", postgresql_where=text("started_at IS NOT NULL")),
    )

    ask_id: Mapped[str] = mapped_column(primary_key=True)
    """Of the environment or the task."""
    generation: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    estimated_at: Mapped[datetime] = mapped_column(server_default=now)
    p50_at: Mapped[datetime]
    p90_at: Mapped[datetime]
    basis: Mapped[str]
    started_at: Mapped[datetime | None]


class HubStart(Base):
    """A place in the queue that is kept for a hub server; the hub is asked to start it when its turn comes.

    The row goes when the hub's spawner has taken the place over, or when the environment waits no more.
    """

    __tablename__ = "hub_starts"
    __table_args__ = (one_of("state", "waiting", "due"),)

    environment_id: Mapped[str] = mapped_column(
        ForeignKey("environments.id", ondelete="CASCADE"), primary_key=True
    )
    generation: Mapped[int] = mapped_column(BigInteger)
    hub_user: Mapped[str]
    hub_server: Mapped[str]
    """Name of the hub server; empty for the default one."""
    state: Mapped[str] = mapped_column(server_default="waiting")
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=now)
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
