"""Limits."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Identity, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of


class Quota(Base):
    """One limit. Locked in id order by every transaction that allocates against it."""

    __tablename__ = "quotas"
    __table_args__ = (
        UniqueConstraint("subject_type", "subject_id", "resource"),
        one_of("subject_type", "user", "customer"),
        one_of("resource", "gpus", "environments", "cpus", "memory_bytes"),
        CheckConstraint("limit_value IS NULL OR limit_value >= 0", name="limit_not_negative"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    resource: Mapped[str]
    limit_value: Mapped[int | None] = mapped_column(BigInteger)
    """``NULL``: unlimited."""
    changed_at: Mapped[datetime] = mapped_column(server_default=now)
