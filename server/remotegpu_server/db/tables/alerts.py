"""Rules, what they say of objects, and silences."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, CheckConstraint, ForeignKey, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of

_SEVERITIES = ("info", "warning", "critical")


class AlertRule(Base):
    """When to raise an alert."""

    __tablename__ = "alert_rules"
    __table_args__ = (
        one_of("operator", ">", ">=", "<", "<=", "=="),
        one_of("severity", *_SEVERITIES),
        CheckConstraint("duration_s >= 0", name="duration_not_negative"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    signal: Mapped[str]
    """One of ``alerts.signals``."""
    operator: Mapped[str]
    threshold: Mapped[float]
    duration_s: Mapped[float]
    severity: Mapped[str]
    scope: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """The wire type ``AlertScope``."""
    advice: Mapped[str] = mapped_column(server_default="")
    enabled: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    built_in: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    last_error: Mapped[str | None]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    changed_at: Mapped[datetime] = mapped_column(server_default=now)


class Alert(Base):
    """What a rule says of one object. At most one live row of a rule and an object."""

    __tablename__ = "alerts"
    __table_args__ = (
        one_of("status", "pending", "firing", "resolved"),
        one_of("severity", *_SEVERITIES),
        CheckConstraint("(status = 'pending') = (fired_at IS NULL)", name="fired"),
        CheckConstraint("(status = 'resolved') = (resolved_at IS NOT NULL)", name="resolved"),
        CheckConstraint("(acknowledged_at IS NULL) = (acknowledged_by IS NULL)", name="acknowledged"),
        Index(
            "uq_alerts_live",
            "rule_id",
            "object_type",
            "object_id",
            unique=True,
            postgresql_where=text("status IN ('pending', 'firing')"),
        ),
        Index("ix_alerts_resolved", "rule_id", "resolved_at"),
        Index("ix_alerts_position", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    rule_id: Mapped[str | None] = mapped_column(ForeignKey("alert_rules.id", ondelete="SET NULL"))
    rule_name: Mapped[str]
    severity: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    """Moved by ``alerts.lifecycle`` alone, and guarded by a trigger."""
    object_type: Mapped[str]
    object_id: Mapped[str]
    object_name: Mapped[str]
    value: Mapped[float]
    unit: Mapped[str]
    message: Mapped[str]
    user_id: Mapped[str | None]
    """Whose the object is: who may see the alert besides admins."""
    customer_id: Mapped[str | None]
    workspace_id: Mapped[str | None]
    since: Mapped[datetime] = mapped_column(server_default=now)
    true_at: Mapped[datetime] = mapped_column(server_default=now)
    """When it was true the last time."""
    fired_at: Mapped[datetime | None]
    told_at: Mapped[datetime | None]
    """When people were told; ``NULL`` while a silence holds."""
    resolved_at: Mapped[datetime | None]
    resolution: Mapped[str | None]
    flaps: Mapped[int] = mapped_column(Integer, server_default="0")
    acknowledged_by: Mapped[str | None]
    acknowledged_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class AlertSilence(Base):
    """Nobody is told of what it covers."""

    __tablename__ = "alert_silences"
    __table_args__ = (Index("ix_alert_silences_until", "until"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    rule_id: Mapped[str | None] = mapped_column(ForeignKey("alert_rules.id", ondelete="CASCADE"))
    """``NULL``: of every rule."""
    object: Mapped[str | None]
    """Id or name; ``NULL``: every object."""
    until: Mapped[datetime]
    reason: Mapped[str] = mapped_column(server_default="")
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
