# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""SSH keys of the caller."""

from __future__ import annotations

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.ssh_keys import SshKey


class SyncSshKeys(SyncResource):
    """SSH keys of the caller: what opens the own environments."""

    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Page[SshKey]:
        """The own keys, oldest first."""
        return fetch_page(self._transport, SshKey, "/v1/ssh-keys", given(limit=limit, cursor=cursor))

    def create(self, *, name: str, public_key: str, idempotency_key: str | None = None) -> SshKey:
        """Register one line of an ``authorized_keys`` file. It works within one heartbeat."""
        body = given(name=name, public_key=public_key)
        return self._transport.create(SshKey, "/v1/ssh-keys", body=body, idempotency_key=idempotency_key)

    def get(self, key_id: str) -> SshKey:
        """One own key."""
        return self._transport.call(SshKey, "GET", f"/v1/ssh-keys/{segment(key_id)}")

    def delete(self, key_id: str) -> None:
        """Remove it. Within one heartbeat it opens nothing any more; open sessions stay open."""
        self._transport.send("DELETE", f"/v1/ssh-keys/{segment(key_id)}")
