# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""API tokens of the caller."""

from __future__ import annotations

from collections.abc import Sequence

from remotegpu._protocol import given, listed, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.identity import Token, TokenCreated


class SyncTokens(SyncResource):
    """API tokens of the caller."""

    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Page[Token]:
        """The caller's tokens, without their secrets."""
        return fetch_page(self._transport, Token, "/v1/tokens", given(limit=limit, cursor=cursor))

    def create(
        self,
        *,
        name: str,
        scopes: Sequence[str] | None = None,
        expires_in_s: int | None = None,
        idempotency_key: str | None = None,
    ) -> TokenCreated:
        """A new token; its secret is shown this once."""
        body = given(name=name, scopes=listed(scopes, what="scopes"), expires_in_s=expires_in_s)
        return self._transport.create(TokenCreated, "/v1/tokens", body=body, idempotency_key=idempotency_key)

    def delete(self, token_id: str) -> None:
        """Revoke a token at once."""
        self._transport.send("DELETE", f"/v1/tokens/{segment(token_id)}")
