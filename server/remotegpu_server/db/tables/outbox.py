"""What is still to be delivered elsewhere, and how people want to be told."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, CheckConstraint, ForeignKey, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of


class OutboxMessage(Base):
    """One delivery, written in the transaction that causes it, leased to whoever delivers it."""

    __tablename__ = "outbox"
    __table_args__ = (
        one_of("channel", "mail"),
        CheckConstraint("delivered_at IS NULL OR dead_at IS NULL", name="one_end"),
        Index(
            "ix_outbox_due",
            "channel",
            "due_at",
            postgresql_where=text("delivered_at IS NULL AND dead_at IS NULL"),
        ),
        Index("ix_outbox_user", "user_id", "created_at"),
        Index("ix_outbox_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    channel: Mapped[str]
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    """Whom a mail is for; the address is the account's when it is sent."""
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    """Of a mail: ``subject`` and ``text``. Never a secret."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    due_at: Mapped[datetime] = mapped_column(server_default=now)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """Also the fence: only who made the last attempt writes how it went."""
    leased_until: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    dead_at: Mapped[datetime | None]
    """Given up."""
    error: Mapped[str | None]
    """Why the last attempt failed."""


class NotificationPreference(Base):
    """How a person wants to be told of a kind, a noun, or everything (``*``)."""

    __tablename__ = "notification_preferences"
    __table_args__ = (one_of("mail", "now", "digest", "off"),)

    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    in_app: Mapped[bool] = mapped_column(Boolean)
    mail: Mapped[str]
