"""Limits, the policies that they come from, and requests for more."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of

_SUBJECTS = ("user", "workspace", "customer")
_RESOURCES = ("gpus", "gpu_hours", "cpus", "memory_bytes", "storage_bytes", "environments", "tasks")


class Quota(Base):
    """One limit. Locked in id order by every transaction that allocates against it.

    Rows with a ``policy_id`` are kept equal to their policy by ``quotas.policies``; the others were set for
    this subject.
    """

    __tablename__ = "quotas"
    __table_args__ = (
        UniqueConstraint("subject_type", "subject_id", "resource"),
        one_of("subject_type", *_SUBJECTS),
        one_of("resource", *_RESOURCES),
        CheckConstraint("limit_value IS NULL OR limit_value >= 0", name="limit_not_negative"),
        CheckConstraint("(resource = 'gpu_hours') = (window_s IS NOT NULL)", name="window_of_gpu_hours"),
        CheckConstraint("(granted_value IS NULL) = (granted_until IS NULL)", name="granted_until"),
        Index("ix_quotas_policy", "policy_id", postgresql_where=text("policy_id IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    resource: Mapped[str]
    limit_value: Mapped[int | None] = mapped_column(BigInteger)
    """``NULL``: unlimited."""
    window_s: Mapped[int | None] = mapped_column(BigInteger)
    policy_id: Mapped[str | None] = mapped_column(ForeignKey("quota_policies.id", ondelete="CASCADE"))
    granted_value: Mapped[int | None] = mapped_column(BigInteger)
    """Counts instead of a lower ``limit_value`` until ``granted_until``."""
    granted_until: Mapped[datetime | None]
    warned_at: Mapped[datetime | None]
    """GPU-hours and storage: the holders were warned; ``NULL`` again when the use is low."""
    exceeded_at: Mapped[datetime | None]
    """GPU-hours: used up since then while something runs; the grace counts from here. Storage: told since
    then; ``NULL`` again when the use is lower."""
    changed_at: Mapped[datetime] = mapped_column(server_default=now)


class QuotaPolicy(Base):
    """A named set of limits."""

    __tablename__ = "quota_policies"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class QuotaPolicyLimit(Base):
    """One limit of a policy."""

    __tablename__ = "quota_policy_limits"
    __table_args__ = (
        one_of("resource", *_RESOURCES),
        CheckConstraint("limit_value IS NULL OR limit_value >= 0", name="limit_not_negative"),
        CheckConstraint("(resource = 'gpu_hours') = (window_s IS NOT NULL)", name="window_of_gpu_hours"),
    )

    policy_id: Mapped[str] = mapped_column(
        ForeignKey("quota_policies.id", ondelete="CASCADE"), primary_key=True
    )
    resource: Mapped[str] = mapped_column(primary_key=True)
    limit_value: Mapped[int | None] = mapped_column(BigInteger)
    window_s: Mapped[int | None] = mapped_column(BigInteger)


class QuotaPolicyTarget(Base):
    """To whom a policy applies; one policy for each target."""

    __tablename__ = "quota_policy_targets"
    __table_args__ = (
        one_of("subject_type", *_SUBJECTS),
        one_of("group_name", "admin", "owner", "member", "personal", "team"),
        UniqueConstraint("subject_type", "customer_id", "group_name", postgresql_nulls_not_distinct=True),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    policy_id: Mapped[str] = mapped_column(ForeignKey("quota_policies.id", ondelete="CASCADE"), index=True)
    subject_type: Mapped[str]
    customer_id: Mapped[str | None] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    """``NULL``: of every customer."""
    group_name: Mapped[str | None]
    """The role of a user, the kind of a workspace; ``NULL``: all."""


class QuotaRequest(Base):
    """Somebody asks for a higher limit."""

    __tablename__ = "quota_requests"
    __table_args__ = (
        one_of("subject_type", *_SUBJECTS),
        one_of("resource", *_RESOURCES),
        one_of("status", "open", "approved", "refused", "withdrawn", "lapsed"),
        CheckConstraint("(status IN ('open', 'withdrawn')) = (decided_by IS NULL)", name="decided"),
        Index(
            "uq_quota_requests_open",
            "subject_type",
            "subject_id",
            "resource",
            "requested_by",
            unique=True,
            postgresql_where=text("status = 'open'"),
        ),
        Index("ix_quota_requests_customer", "customer_id", "created_at"),
        Index(
            "ix_quota_requests_lapsing",
            "granted_until",
            postgresql_where=text("status = 'approved' AND granted_until IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    subject_name: Mapped[str]
    customer_id: Mapped[str] = mapped_column(ForeignKey("customers.id", ondelete="RESTRICT"))
    resource: Mapped[str]
    amount: Mapped[int] = mapped_column(BigInteger)
    wanted_until: Mapped[datetime | None]
    why: Mapped[str]
    limit_before: Mapped[int] = mapped_column(BigInteger)
    requested_by: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"), index=True)
    status: Mapped[str] = mapped_column(server_default="open")
    granted_amount: Mapped[int | None] = mapped_column(BigInteger)
    granted_until: Mapped[datetime | None]
    decided_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"))
    note: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    decided_at: Mapped[datetime | None]
