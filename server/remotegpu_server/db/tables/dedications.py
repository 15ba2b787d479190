"""Whole hosts lent to a tenant for a period, and what is done when the period is over."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of

_KEY = "hashtextextended(host_id, 0)"


class Dedication(Base):
    """A host that works for one customer, or one of its workspaces, between two moments.

    The exclusion constraint refuses two periods of one host that overlap, whoever asks at the same time. It
    compares a hash of the host's id, because a range type needs no extension and ``text`` would.
    """

    __tablename__ = "dedications"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "customer_id"], ["workspaces.id", "workspaces.customer_id"], ondelete="RESTRICT"
        ),
        one_of("status", "scheduled", "active", "grace", "cleaning", "ended", "cancelled"),
        CheckConstraint("ends_at >= starts_at", name="period"),
        ExcludeConstraint(
            (func.int8range(literal_column(_KEY), literal_column(_KEY), literal_column("'[]'")), "&&"),
            (func.tstzrange(literal_column("starts_at"), literal_column("ends_at")), "&&"),
            name="ex_dedications_host_period",
            where=text("status <> 'cancelled'"),
        ),
        Index(
            "uq_dedications_live_host",
            "host_id",
            unique=True,
            postgresql_where=text("status IN ('active', 'grace', 'cleaning')"),
        ),
        Index("ix_dedications_customer", "customer_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="RESTRICT"))
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    workspace_id: Mapped[str | None]
    """``NULL``: for the whole customer."""
    status: Mapped[str] = mapped_column(server_default="scheduled")
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    remark: Mapped[str] = mapped_column(server_default="")
    end_reason: Mapped[str | None]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    activated_at: Mapped[datetime | None]
    cleaned_at: Mapped[datetime | None]


class DedicationStep(Base):
    """One step of the clean-up, in the order of ``position``. A step runs until it has its proof."""

    __tablename__ = "dedication_steps"
    __table_args__ = (
        one_of("name", "stop_environments", "revoke_keys", "wipe_homes", "verify_absence"),
        one_of("status", "pending", "running", "done", "failed"),
    )

    dedication_id: Mapped[str] = mapped_column(
        ForeignKey("dedications.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(server_default="pending")
    detail: Mapped[str] = mapped_column(server_default="")
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
