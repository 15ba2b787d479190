"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.hosts import RuntimeKind
from remotegpu.types.images import Image, ImageStatus, ImageVisibility
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
        local=row.local,
        runtime=RuntimeKind(row.runtime),
        command=row.command,
        status=ImageStatus(row.status),
        category=row.category,
        framework=row.framework,
        framework_version=row.framework_version,
        cuda_version=row.cuda_version,
        python_version=row.python_version,
        size_bytes=row.size_bytes,
        visibility=ImageVisibility(row.visibility),
        customer_id=row.customer_id,
        workspace_id=row.workspace_id,
        starts_until=row.starts_until,
        deprecation_note=row.deprecation_note,
        max_lifetime_s=row.max_lifetime_s,
        created_at=row.created_at,
    )
