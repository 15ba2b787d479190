"""The catalogue of images."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of


class Image(Base):
    """One entry of the catalogue: what may run, and for whom."""

    __tablename__ = "images"
    __table_args__ = (
        one_of("status", "inactive", "active", "deprecated", "withdrawn"),
        one_of("runtime", "docker", "process"),
        one_of("visibility", "platform", "customer", "workspace"),
        CheckConstraint(
            "(visibility = 'customer') = (customer_id IS NOT NULL)"
            " AND (visibility = 'workspace') = (workspace_id IS NOT NULL)",
            name="visible_to",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    reference: Mapped[str]
    display_name: Mapped[str]
    description: Mapped[str]
    category: Mapped[str] = mapped_column(server_default="")
    framework: Mapped[str | None]
    framework_version: Mapped[str | None]
    cuda_version: Mapped[str | None]
    python_version: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    digest: Mapped[str | None]
    runtime: Mapped[str]
    command: Mapped[list[str] | None]
    status: Mapped[str] = mapped_column(server_default="active")
    visibility: Mapped[str] = mapped_column(server_default="platform")
    customer_id: Mapped[str | None] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    workspace_id: Mapped[str | None] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    starts_until: Mapped[datetime | None]
    """Of a deprecated image: new starts are refused from then on; ``NULL``: they are only warned about."""
    deprecation_note: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class WorkspaceImage(Base):
    """The allow-list of a workspace. A workspace without rows may use every image that it sees."""

    __tablename__ = "workspace_images"

    workspace_id: Mapped[str] = mapped_column(
        ForeignKey("workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id", ondelete="CASCADE"), primary_key=True)
