"""Public keys that open the environments of their owner."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now


class SshKey(Base):
    """One public key of one user, parsed and written anew: type and key, without options or comment."""

    __tablename__ = "ssh_keys"
    __table_args__ = (
        UniqueConstraint("user_id", "fingerprint"),
        CheckConstraint("char_length(name) BETWEEN 1 AND 64", name="name_length"),
        CheckConstraint("public_key ~ '^[a-z0-9@.-]+ [A-Za-z0-9+/]+=*$'", name="one_line"),
        Index("ix_ssh_keys_user", "user_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str]
    key_type: Mapped[str]
    public_key: Mapped[str]
    fingerprint: Mapped[str]
    """``SHA256:…`` as ssh-keygen prints it."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)
