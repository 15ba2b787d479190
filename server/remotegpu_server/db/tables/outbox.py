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
        one_of("channel", "mail", "webhook"),
        CheckConstraint("(channel = 'webhook') = (webhook_id IS NOT NULL)", name="of_a_webhook"),
        CheckConstraint("delivered_at IS NULL OR dead_at IS NULL", name="one_end"),
        Index(
            "ix_outbox_due",
            "channel",
            "due_at",
            postgresql_where=text("delivered_at IS NULL AND dead_at IS NULL"),
        ),
        Index("ix_outbox_user", "user_id", "created_at"),
        Index(
            "ix_outbox_webhook", "webhook_id", "created_at", postgresql_where=text("webhook_id IS NOT NULL")
        ),
        Index("ix_outbox_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    channel: Mapped[str]
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    """Whom a mail is for, at the account's address when it is sent; of a webhook its owner."""
    webhook_id: Mapped[str | None] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    """Of a mail: ``subject`` and ``text``; of a webhook its body. Never a secret."""
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


class Webhook(Base):
    """Where a program is told what its owner may see."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("ix_webhooks_owner", "owner_id", "created_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    url: Mapped[str]
    events: Mapped[list[str]]
    description: Mapped[str] = mapped_column(server_default="")
    secret: Mapped[bytes]
    """Encrypted."""
    enabled: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    """In a row; nothing is tried before ``paused_until``."""
    failing_since: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class NotificationPreference(Base):
    """How a person wants to be told of a kind, a noun, or everything (``*``)."""

    __tablename__ = "notification_preferences"
    __table_args__ = (one_of("mail", "now", "digest", "off"),)

    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    in_app: Mapped[bool] = mapped_column(Boolean)
    mail: Mapped[str]
