"""The caller."""

from __future__ import annotations

from remotegpu._async.resource import AsyncResource
from remotegpu.types.identity import Identity


class AsyncMe(AsyncResource):
    """The caller."""

    async def get(self) -> Identity:
        """Who this client is, as the server sees it."""
        return await self._transport.call(Identity, "GET", "/v1/me")

    async def change_password(self, *, current_password: str, new_password: str) -> None:
        """Set a new password; every other session of the user ends."""
        body = {"current_password": current_password, "new_password": new_password}
        await self._transport.send("POST", "/v1/me/password", body=body)
