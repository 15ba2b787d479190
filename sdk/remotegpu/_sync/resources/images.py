# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Images: the catalogue of what may run, and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from remotegpu._protocol import given, listed, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.images import Image, WorkspaceImages


class SyncImages(SyncResource):
    """Images: the catalogue of what may run. An image is named by id or name."""

    def list(
        self,
        *,
        status: str | None = None,
        framework: str | None = None,
        category: str | None = None,
        search: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Image]:
        """What the caller sees of the catalogue, by name."""
        params = given(
            status=status,
            framework=framework,
            category=category,
            search=search,
            limit=limit,
            cursor=cursor,
        )
        return fetch_page(self._transport, Image, "/v1/images", params)

    def create(
        self,
        *,
        name: str,
        reference: str,
        display_name: str | None = None,
        description: str | None = None,
        digest: str | None = None,
        runtime: str | None = None,
        command: Sequence[str] | None = None,
        category: str | None = None,
        framework: str | None = None,
        framework_version: str | None = None,
        cuda_version: str | None = None,
        python_version: str | None = None,
        size_bytes: int | None = None,
        customer: str | None = None,
        workspace: str | None = None,
        max_lifetime_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Image:
        """Allow an image, for everybody, or for one `customer` or `workspace`. Without `digest`, the first
        agent that pulls it pins the content."""
        body = given(
            name=name,
            reference=reference,
            display_name=display_name,
            description=description,
            digest=digest,
            runtime=runtime,
            command=listed(command, what="command"),
            category=category,
            framework=framework,
            framework_version=framework_version,
            cuda_version=cuda_version,
            python_version=python_version,
            size_bytes=size_bytes,
            customer=customer,
            workspace=workspace,
            max_lifetime_s=max_lifetime_s,
        )
        return self._transport.create(Image, "/v1/images", body=body, idempotency_key=idempotency_key)

    def get(self, image: str) -> Image:
        """One image."""
        return self._transport.call(Image, "GET", f"/v1/images/{segment(image)}")

    def update(
        self,
        image: str,
        *,
        reference: str | None = None,
        display_name: str | None = None,
        description: str | None = None,
        digest: str | None = None,
        status: str | None = None,
        category: str | None = None,
        framework: str | None = None,
        framework_version: str | None = None,
        cuda_version: str | None = None,
        python_version: str | None = None,
        size_bytes: int | None = None,
        starts_until: datetime | None = None,
        deprecation_note: str | None = None,
        max_lifetime_s: float | None = None,
    ) -> Image:
        """Change what is given. ``status``: ``active``; ``deprecated`` warns, and refuses new starts from
        `starts_until` on; ``withdrawn`` takes it off the list for new starts. `max_lifetime_s` bounds what
        starts from it; 0: not any more."""
        body = given(
            reference=reference,
            display_name=display_name,
            description=description,
            digest=digest,
            status=status,
            category=category,
            framework=framework,
            framework_version=framework_version,
            cuda_version=cuda_version,
            python_version=python_version,
            size_bytes=size_bytes,
            starts_until=None if starts_until is None else starts_until.isoformat(),
            deprecation_note=deprecation_note,
            max_lifetime_s=max_lifetime_s,
        )
        return self._transport.call(Image, "PATCH", f"/v1/images/{segment(image)}", body=body)

    def of_workspace(self, workspace: str) -> WorkspaceImages:
        """The images that a workspace (by id) may use, where that is restricted."""
        path = f"/v1/workspaces/{segment(workspace)}/images"
        return self._transport.call(WorkspaceImages, "GET", path)

    def restrict_workspace(self, workspace: str, images: Sequence[str] | None) -> WorkspaceImages:
        """Let a workspace use these images only; ``None``: every one that it sees."""
        path = f"/v1/workspaces/{segment(workspace)}/images"
        body = {"images": listed(images, what="images")}
        return self._transport.call(WorkspaceImages, "PUT", path, body=body)
