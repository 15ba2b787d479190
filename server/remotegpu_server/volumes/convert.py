"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.volumes import Volume, VolumeStatus
from remotegpu_server.volumes.queries import Found


def to_wire(found: Found) -> Volume:
    """A volume with the names of its owner and host."""
    row = found.volume
    return Volume(
        id=row.id,
        owner=found.owner,
        owner_id=row.owner_id,
        host_id=row.host_id,
        host_name=found.host_name,
        shared_home=row.shared_home,
        status=_status(found),
        in_use=found.in_use,
        size_bytes=row.size_bytes,
        measured_at=row.measured_at,
        last_used_at=row.last_used_at,
        created_at=row.created_at,
        removal_requested_at=row.removal_requested_at,
        removed_at=row.removed_at,
        removal_detail=found.removal_detail,
    )


def _status(found: Found) -> VolumeStatus:
    if found.volume.removed_at is not None:
        return VolumeStatus.REMOVED
    if found.volume.removal_requested_at is not None:
        return VolumeStatus.REMOVING
    return VolumeStatus.PRESENT
