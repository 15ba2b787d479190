"""Images: the allow-list of what may run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from remotegpu.types.hosts import RuntimeKind
from remotegpu.types.wire import Bytes, CeilingS, Name, Text, UtcTime, Wire, WireEnum

Reference = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]{0,254}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class ImageStatus(WireEnum):
    """Whether new environments may use an image."""

    INACTIVE = "inactive"
    """In the catalogue; an admin has not activated it yet, and nobody else sees it."""
    ACTIVE = "active"
    DEPRECATED = "deprecated"
    """Still starts, with a warning; from ``starts_until`` on nothing new does."""
    WITHDRAWN = "withdrawn"
    """Running environments keep it; nothing new starts from it."""
    UNKNOWN = "unknown"


class ImageVisibility(WireEnum):
    """Who may see and start an image."""

    PLATFORM = "platform"
    CUSTOMER = "customer"
    """The users of one customer."""
    WORKSPACE = "workspace"
    """What lives in one workspace."""
    UNKNOWN = "unknown"


Label = Annotated[str, StringConstraints(max_length=64)]


class ImageCreate(Wire):
    """A new entry of the catalogue."""

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
    category: Label = ""
    framework: Label | None = None
    framework_version: Label | None = None
    cuda_version: Label | None = None
    python_version: Label | None = None
    size_bytes: Bytes | None = None
    customer: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """Id or name: only for this customer. Left out, like ``workspace``: for everybody."""
    workspace: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """Id: only for this workspace."""
    max_lifetime_s: Annotated[CeilingS, Field(gt=0)] | None = None
    """What starts from it runs so long at most; the smallest of this, the workspace's and the platform's
    counts."""


class ImageUpdate(Wire):
    """Fields left out stay as they are. A new reference or digest counts from the next start on."""

    reference: Reference | None = None
    display_name: Text | None = None
    description: Text | None = None
    digest: Digest | None = None
    status: ImageStatus | None = None
    category: Label | None = None
    framework: Label | None = None
    framework_version: Label | None = None
    cuda_version: Label | None = None
    python_version: Label | None = None
    size_bytes: Bytes | None = None
    starts_until: UtcTime | None = None
    """Of a deprecated image; left out: it goes on with a warning."""
    deprecation_note: Text | None = None
    """Such as what to use instead."""
    max_lifetime_s: CeilingS | None = None
    """0: no ceiling of its own again. What runs keeps the lifetime that it has."""


class Image(Wire):
    """An entry of the catalogue."""

    id: str
    name: str
    reference: str
    display_name: str
    description: str
    digest: str | None
    local: bool
    """No registry has it: it starts only on hosts that have it, as one saved from an environment does."""
    runtime: RuntimeKind
    command: list[str] | None
    status: ImageStatus
    category: str
    framework: str | None
    framework_version: str | None
    cuda_version: str | None
    python_version: str | None
    size_bytes: Bytes | None
    visibility: ImageVisibility
    customer_id: str | None
    workspace_id: str | None
    starts_until: UtcTime | None
    deprecation_note: str
    max_lifetime_s: float | None
    """What starts from it runs so long at most; ``null``: it sets no ceiling."""
    created_at: UtcTime


class WorkspaceImagesUpdate(Wire):
    """The only images that a workspace may use, by id or name; ``null``: every one that it sees."""

    images: Annotated[list[Annotated[str, StringConstraints(max_length=64)]], Field(max_length=500)] | None


class WorkspaceImages(Wire):
    """The allow-list of a workspace."""

    restricted: bool
    """False: it may use every image that it sees."""
    images: list[Image]
