# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Homes, and what they take of the disk."""

from __future__ import annotations

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.volumes import Volume


class SyncVolumes(SyncResource):
    """Homes: each user has one on every host that it used, or one for all hosts with a shared root."""

    def list(
        self,
        *,
        owner: str | None = None,
        host: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Volume]:
        """Those that exist, oldest first: the own ones; owners see their customer's, admins all."""
        params = given(owner=owner, host=host, limit=limit, cursor=cursor)
        return fetch_page(self._transport, Volume, "/v1/volumes", params)

    def get(self, volume_id: str) -> Volume:
        """One volume, a removed one too."""
        return self._transport.call(Volume, "GET", f"/v1/volumes/{segment(volume_id)}")

    def delete(self, volume_id: str) -> Volume:
        """Remove it with everything in it, for good. `InUse` while something runs on it.

        The answer says `removing`; it is `removed` when its host has confirmed that.
        """
        return self._transport.call(Volume, "DELETE", f"/v1/volumes/{segment(volume_id)}")
