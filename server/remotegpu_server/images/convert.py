"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.hosts import RuntimeKind
from remotegpu.types.images import Image, ImageStatus
from remotegpu_server.db import tables


def to_wire(row: tables.Image) -> Image:
    """An allow-listed image."""
    return Image(
        id=row.id,
        name=row.name,
        reference=row.reference,
        display_name=row.display_name,
        description=row.description,
        digest=row.digest,
        runtime=RuntimeKind(row.runtime),
        command=row.command,
        status=ImageStatus(row.status),
        created_at=row.created_at,
    )
