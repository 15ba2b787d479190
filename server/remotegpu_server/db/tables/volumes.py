"""Homes, how large they are, and how they leave a disk."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now


class Volume(Base):
    """A home directory: on one host's disk, or under a shared root. Outlives environments.

    Once its removal was asked for, nothing starts on it any more, and its id never names another home: the
    owner's next start on that host makes a new row.
    """

    __tablename__ = "volumes"
    __table_args__ = (
        CheckConstraint("(host_id IS NULL) <> (shared_home IS NULL)", name="on_host_or_shared"),
        CheckConstraint("(size_bytes IS NULL) = (measured_at IS NULL)", name="size_was_measured"),
        CheckConstraint("size_bytes >= 0", name="size_not_negative"),
        CheckConstraint(
            "removed_at IS NULL OR removal_requested_at IS NOT NULL", name="removal_was_asked_for"
        ),
        Index(
            "uq_volumes_owner_host",
            "owner_id",
            "host_id",
            unique=True,
            postgresql_where=text("host_id IS NOT NULL AND removal_requested_at IS NULL"),
        ),
        Index(
            "uq_volumes_owner_shared",
            "owner_id",
            "shared_home",
            unique=True,
            postgresql_where=text("shared_home IS NOT NULL AND removal_requested_at IS NULL"),
        ),
        Index(
            "ix_volumes_measuring",
            "measuring_host_id",
            postgresql_where=text("measuring_host_id IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="RESTRICT"), index=True)
    host_id: Mapped[str | None] = mapped_column(ForeignKey("hosts.id", ondelete="RESTRICT"))
    shared_home: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    last_used_at: Mapped[datetime] = mapped_column(server_default=now)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """On disk, when it was measured last; ``NULL``: never measured."""
    measured_at: Mapped[datetime | None]
    measure_asked_at: Mapped[datetime | None]
    """When a host was asked to measure it last: what was written after that is not in ``size_bytes``."""
    measuring_host_id: Mapped[str | None] = mapped_column(ForeignKey("hosts.id", ondelete="SET NULL"))
    """The one host that is asked to measure it now."""
    removal_requested_at: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]
    """Its agent's word that nothing of it is left."""


class VolumeRemoval(Base):
    """A home that must leave a disk: desired state of one agent until that confirms it."""

    __tablename__ = "volume_removals"
    __table_args__ = (
        Index(
            "uq_volume_removals_open", "volume_id", unique=True, postgresql_where=text("removed_at IS NULL")
        ),
        Index("ix_volume_removals_open_host", "host_id", postgresql_where=text("removed_at IS NULL")),
        Index("ix_volume_removals_dedication", "dedication_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"))
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"))
    dedication_id: Mapped[str | None] = mapped_column(ForeignKey("dedications.id", ondelete="CASCADE"))
    """The period after which it is removed; ``NULL``: somebody deleted the volume."""
    requested_at: Mapped[datetime] = mapped_column(server_default=now)
    removed_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    detail: Mapped[str] = mapped_column(server_default="")
