"""The allow-list."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of


class Image(Base):
    """The allow-list."""

    __tablename__ = "images"
    __table_args__ = (one_of("status", "active", "withdrawn"), one_of("runtime", "docker", "process"))

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    reference: Mapped[str]
    display_name: Mapped[str]
    description: Mapped[str]
    digest: Mapped[str | None]
    runtime: Mapped[str]
    command: Mapped[list[str] | None]
    status: Mapped[str] = mapped_column(server_default="active")
    created_at: Mapped[datetime] = mapped_column(server_default=now)
