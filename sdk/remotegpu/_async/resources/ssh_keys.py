"""SSH keys of the caller."""

from __future__ import annotations

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, segment
from remotegpu.types.ssh_keys import SshKey


class AsyncSshKeys(AsyncResource):
    """SSH keys of the caller: what opens the own environments."""

    async def list(self, *, limit: int | None = None, cursor: str | None = None) -> AsyncPage[SshKey]:
        """The own keys, oldest first."""
        return await fetch_page(self._transport, SshKey, "/v1/ssh-keys", given(limit=limit, cursor=cursor))

    async def create(self, *, name: str, public_key: str, idempotency_key: str | None = None) -> SshKey:
        """Register one line of an ``authorized_keys`` file. It works within one heartbeat."""
        body = given(name=name, public_key=public_key)
        return await self._transport.create(
            SshKey, "/v1/ssh-keys", body=body, idempotency_key=idempotency_key
        )

    async def get(self, key_id: str) -> SshKey:
        """One own key."""
        return await self._transport.call(SshKey, "GET", f"/v1/ssh-keys/{segment(key_id)}")

    async def delete(self, key_id: str) -> None:
        """Remove it. Within one heartbeat it opens nothing any more; open sessions stay open."""
        await self._transport.send("DELETE", f"/v1/ssh-keys/{segment(key_id)}")
