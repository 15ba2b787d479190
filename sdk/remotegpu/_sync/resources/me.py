# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""The caller."""

from __future__ import annotations

from remotegpu._sync.resource import SyncResource
from remotegpu.types.identity import Identity


class SyncMe(SyncResource):
    """The caller."""

    def get(self) -> Identity:
        """Who this client is, as the server sees it."""
        return self._transport.call(Identity, "GET", "/v1/me")

    def change_password(self, *, current_password: str, new_password: str) -> None:
        """Set a new password; every other session of the user ends."""
        body = {"current_password": current_password, "new_password": new_password}
        self._transport.send("POST", "/v1/me/password", body=body)
