"""Images: the allow-list of what may run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from remotegpu.types.hosts import RuntimeKind
from remotegpu.types.wire import Name, Text, UtcTime, Wire, WireEnum

Reference = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]{0,254}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class ImageStatus(WireEnum):
    """Whether new environments may use an image."""

    ACTIVE = "active"
    WITHDRAWN = "withdrawn"
    """Running environments keep it; nothing new starts from it."""
    UNKNOWN = "unknown"


class ImageCreate(Wire):
    """A new entry of the allow-list."""

    name: Name
    """How people and programs ask for it, such as ``base``."""
    reference: Reference
    """What the engine pulls, such as ``registry.example.org/lab/base:2026.11``."""
    display_name: Text = ""
    description: Text = ""
    digest: Digest | None = None
    """Pins the content. Left out, the first agent that pulls the reference reports and pins it."""
    runtime: RuntimeKind = RuntimeKind.DOCKER
    command: (
        Annotated[list[Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=64)] | None
    ) = None
    """Starts the notebook server; left out, the image's own command."""


class ImageUpdate(Wire):
    """Fields left out stay as they are. A new reference or digest counts from the next start on."""

    reference: Reference | None = None
    display_name: Text | None = None
    description: Text | None = None
    digest: Digest | None = None
    status: ImageStatus | None = None


class Image(Wire):
    """An allow-listed image."""

    id: str
    name: str
    reference: str
    display_name: str
    description: str
    digest: str | None
    runtime: RuntimeKind
    command: list[str] | None
    status: ImageStatus
    created_at: UtcTime
