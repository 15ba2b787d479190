"""Volumes: homes, how much disk they take, and how they are removed."""

from __future__ import annotations

from remotegpu.types.wire import Bytes, UtcTime, Wire, WireEnum


class VolumeStatus(WireEnum):
    """Whether a home is there."""

    PRESENT = "present"
    REMOVING = "removing"
    """Nothing starts on it any more; its host has not yet said that it is gone. It still counts."""
    REMOVED = "removed"
    UNKNOWN = "unknown"


class Volume(Wire):
    """A home: a directory on one host's disk, or under a shared root. It outlives environments."""

    id: str
    owner: str
    owner_id: str
    host_id: str | None
    host_name: str | None
    """``null``: it lies under ``shared_home``."""
    shared_home: str | None
    status: VolumeStatus
    in_use: bool
    """Something runs on it, so it cannot be deleted."""
    size_bytes: Bytes | None
    """Disk blocks at ``measured_at``, hard links counted once; ``null``: never measured."""
    measured_at: UtcTime | None
    last_used_at: UtcTime
    """When something was started on it last."""
    created_at: UtcTime
    removal_requested_at: UtcTime | None
    removed_at: UtcTime | None
    removal_detail: str
    """Why the removal did not work yet; empty: nothing is wrong."""
