"""Saved images: the file system of a running environment as a new image of its workspace."""

from __future__ import annotations

from remotegpu.types.wire import Bytes, Name, Text, UtcTime, Wire, WireEnum


class ImageSaveStatus(WireEnum):
    """Legal moves: ``docs/images.md``."""

    REQUESTED = "requested"
    """Its host's agent has not begun."""
    SAVING = "saving"
    DONE = "done"
    """The image is in the catalogue."""
    FAILED = "failed"
    """``reason`` says why."""
    CANCELLED = "cancelled"
    """Somebody took it back; nothing of it is left on the host."""
    UNKNOWN = "unknown"


class ImageSaveReason(WireEnum):
    """Why a save failed."""

    ENVIRONMENT_STOPPED = "environment_stopped"
    """It was stopped or restarted before all of it was saved."""
    TOO_LARGE = "too_large"
    """More than ``images.save_max_bytes``."""
    TOOK_TOO_LONG = "took_too_long"
    """Longer than ``images.save_limit_s``."""
    NAME_TAKEN = "name_taken"
    """Somebody made an image of this name meanwhile."""
    HOST_FAILED = "host_failed"
    """The host could not save it; ``message`` says why."""
    UNKNOWN = "unknown"


class ImageSaveCreate(Wire):
    """Save what runs as an image."""

    name: Name
    """Of the new image; no other has it."""
    display_name: Text = ""
    description: Text = ""


class ImageSave(Wire):
    """One save, asked for or over."""

    id: str
    environment_id: str
    generation: int
    image_name: str
    image_id: str | None
    """Of the catalogue; ``null`` until it is done."""
    workspace_id: str
    requested_by_id: str
    """The user who asked for it."""
    host_id: str
    status: ImageSaveStatus
    reason: ImageSaveReason | None
    """Why it failed."""
    message: str
    progress_bytes: Bytes
    """Read from the environment so far."""
    created_at: UtcTime
    finished_at: UtcTime | None
