# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Images: the allow-list of what may run."""

from __future__ import annotations

from collections.abc import Sequence

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.images import Image


class SyncImages(SyncResource):
    """Images: the allow-list of what may run. An image is named by id or name."""

    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Page[Image]:
        """The allow-list."""
        return fetch_page(self._transport, Image, "/v1/images", given(limit=limit, cursor=cursor))

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
        idempotency_key: str | None = None,
    ) -> Image:
        """Allow an image. Without `digest`, the first agent that pulls it pins the content."""
        body = given(
            name=name,
            reference=reference,
            display_name=display_name,
            description=description,
            digest=digest,
            runtime=runtime,
            command=None if command is None else [*command],
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
    ) -> Image:
        """Change what is given; ``status="withdrawn"`` takes it off the list for new starts."""
        body = given(
            reference=reference,
            display_name=display_name,
            description=description,
            digest=digest,
            status=status,
        )
        return self._transport.call(Image, "PATCH", f"/v1/images/{segment(image)}", body=body)
