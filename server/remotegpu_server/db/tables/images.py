"""The catalogue of images."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from remotegpu_server.db.tables.base import Base, now, one_of

_LIVE = text("status IN ('requested', 'saving')")


class Image(Base):
    """One entry of the catalogue: what may run, and for whom."""

    __tablename__ = "images"
    __table_args__ = (
        one_of("status", "inactive", "active", "deprecated", "withdrawn"),
        one_of("runtime", "docker", "process", "slurm"),
        one_of("visibility", "platform", "customer", "workspace"),
        CheckConstraint(
            "(visibility = 'customer') = (customer_id IS NOT NULL)"
            " AND (visibility = 'workspace') = (workspace_id IS NOT NULL)",
            name="visible_to",
        ),
        CheckConstraint("max_lifetime_s > 0", name="ceiling"),
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
    """Of the registry; of a ``local`` image the engine's id."""
    local: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """No registry has it: it starts only on hosts whose inventory names its reference."""
    runtime: Mapped[str]
    command: Mapped[list[str] | None]
    status: Mapped[str] = mapped_column(server_default="active")
    visibility: Mapped[str] = mapped_column(server_default="platform")
    customer_id: Mapped[str | None] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    workspace_id: Mapped[str | None] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    starts_until: Mapped[datetime | None]
    """Of a deprecated image: new starts are refused from then on; ``NULL``: they are only warned about."""
    deprecation_note: Mapped[str] = mapped_column(server_default="")
    max_lifetime_s: Mapped[float | None]
    """What starts from it runs so long at most; ``NULL``: it sets no ceiling."""
    created_at: Mapped[datetime] = mapped_column(server_default=now)


class ImageSave(Base):
    """An environment that is to become an image: desired state of its host's agent while it is live."""

    __tablename__ = "image_saves"
    __table_args__ = (
        one_of("status", "requested", "saving", "done", "failed", "cancelled"),
        CheckConstraint(
            "(finished_at IS NOT NULL) = (status IN ('done', 'failed', 'cancelled'))"
            " AND (reason IS NOT NULL) = (status = 'failed')",
            name="finished",
        ),
        Index("uq_image_saves_live_environment", "environment_id", unique=True, postgresql_where=_LIVE),
        Index("uq_image_saves_live_name", "image_name", unique=True, postgresql_where=_LIVE),
        Index("ix_image_saves_live_host", "host_id", postgresql_where=_LIVE),
        Index("ix_image_saves_environment", "environment_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"))
    generation: Mapped[int] = mapped_column(BigInteger)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"))
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    requested_by: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    image_name: Mapped[str]
    display_name: Mapped[str]
    description: Mapped[str]
    base_image_id: Mapped[str] = mapped_column(ForeignKey("images.id", ondelete="CASCADE"))
    """What the environment was started from."""
    image_id: Mapped[str | None] = mapped_column(ForeignKey("images.id", ondelete="SET NULL"))
    status: Mapped[str] = mapped_column(server_default="requested")
    reason: Mapped[str | None]
    message: Mapped[str] = mapped_column(server_default="")
    progress_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    finished_at: Mapped[datetime | None]


class WorkspaceImage(Base):
    """The allow-list of a workspace. A workspace without rows may use every image that it sees."""

    __tablename__ = "workspace_images"

    workspace_id: Mapped[str] = mapped_column(
        ForeignKey("workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id", ondelete="CASCADE"), primary_key=True)
