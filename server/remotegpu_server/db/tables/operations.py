"""What happened and who did it, what people are told, and what the server keeps about itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Identity,
    Index,
    Integer,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, Xid8, now, one_of


class Event(Base):
    """What happened, written in the transaction that made it happen.

    Readers take rows whose transaction is older than every running one, ordered by (xid, id): a row that
    commits late can then never hide behind a position that was already handed out.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_position", "xid", "id"),
        Index("ix_events_subject", "subject_type", "subject_id", "id"),
        Index("ix_events_at", "at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    xid: Mapped[str] = mapped_column(Xid8(), server_default=func.pg_current_xact_id())
    at: Mapped[datetime] = mapped_column(server_default=now)
    kind: Mapped[str]
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    actor: Mapped[str]
    customer_id: Mapped[str | None]
    """Who may see it besides admins: the user, and owners of the customer. Both null: admins only."""
    user_id: Mapped[str | None]
    workspace_id: Mapped[str | None]
    """Its members may see it too."""
    reason: Mapped[str | None]
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))


class IdempotencyKey(Base):
    """The answer to a create that carried a key: asked again, it is given again."""

    __tablename__ = "idempotency_keys"

    principal: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    request_hash: Mapped[bytes]
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[bytes]
    """Encrypted, because a created token's answer holds its secret."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class Leadership(Base):
    """Who runs the loops. The term is issued here and fences every write of a past leader."""

    __tablename__ = "leadership"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    term: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]


class AuditRecord(Base):
    """Who did what: one row for every write, sign-in and refusal, in the transaction that it records.

    Append-only; a trigger refuses everything but the one update that seals a row into the hash chain.
    """

    __tablename__ = "audit_records"
    __table_args__ = (
        one_of("outcome", "done", "refused", "failed"),
        UniqueConstraint("sequence"),
        Index("ix_audit_records_position", "xid", "id"),
        Index("ix_audit_records_unsealed", "xid", "id", postgresql_where=text("sequence IS NULL")),
        Index("ix_audit_records_at", "at"),
        Index("ix_audit_records_actor", "actor", "at"),
        Index("ix_audit_records_action", "action", "at"),
        Index("ix_audit_records_resource", "resource_type", "resource_id", "at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    xid: Mapped[str] = mapped_column(Xid8(), server_default=func.pg_current_xact_id())
    at: Mapped[datetime] = mapped_column(server_default=now)
    action: Mapped[str]
    """The operation of the API (``hosts.cordon``), or what a loop did."""
    outcome: Mapped[str]
    status: Mapped[int] = mapped_column(Integer)
    """HTTP status of the answer; 0 for what no request did."""
    actor: Mapped[str]
    """Who did it: user name, ``agent:<host>``, ``service:<name>``, ``system`` or ``anonymous``."""
    acted_for: Mapped[str | None]
    """The user for whom a service acted."""
    token_id: Mapped[str | None]
    customer_id: Mapped[str | None]
    """Tenant of the actor."""
    address: Mapped[str | None]
    request_id: Mapped[str]
    resource_type: Mapped[str]
    resource_id: Mapped[str | None]
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    sequence: Mapped[int | None] = mapped_column(BigInteger)
    """Place in the hash chain, set when the row is sealed."""
    hash: Mapped[bytes | None]


class Notification(Base):
    """What a person is told."""

    __tablename__ = "notifications"
    __table_args__ = (
        one_of("level", "info", "warning", "error"),
        Index(
            "uq_notifications_user_dedupe",
            "user_id",
            "dedupe_key",
            unique=True,
            postgresql_where=text("dedupe_key IS NOT NULL"),
        ),
        Index("ix_notifications_user", "user_id", "created_at"),
        Index("ix_notifications_unread", "user_id", postgresql_where=text("read_at IS NULL")),
        Index("ix_notifications_position", "user_id", "xid", "position"),
        Index("ix_notifications_digest", "user_id", postgresql_where=text("digest")),
        Index("ix_notifications_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    kind: Mapped[str]
    level: Mapped[str]
    message: Mapped[str]
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    dedupe_key: Mapped[str | None]
    """The same thing is told once: a second row with this key is not made."""
    xid: Mapped[str] = mapped_column(Xid8(), server_default=func.pg_current_xact_id())
    position: Mapped[int] = mapped_column(BigInteger, Identity())
    """With ``xid`` the place in the person's stream, as of an event."""
    in_app: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    """False: not in the inbox; it is only mailed."""
    digest: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """Waits for the next digest."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    read_at: Mapped[datetime | None]


class PlatformSetting(Base):
    """A setting that an admin changed; what is not here has its default."""

    __tablename__ = "platform_settings"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSONB)
    changed_by: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(server_default=now)
