"""API tokens of the caller."""

from __future__ import annotations

from collections.abc import Sequence

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, listed, segment
from remotegpu.types.identity import Token, TokenCreated


class AsyncTokens(AsyncResource):
    """API tokens of the caller."""

    async def list(self, *, limit: int | None = None, cursor: str | None = None) -> AsyncPage[Token]:
        """The caller's tokens, without their secrets."""
        return await fetch_page(self._transport, Token, "/v1/tokens", given(limit=limit, cursor=cursor))

    async def create(
        self,
        *,
        name: str,
        scopes: Sequence[str] | None = None,
        expires_in_s: int | None = None,
        idempotency_key: str | None = None,
    ) -> TokenCreated:
        """A new token; its secret is shown this once."""
        body = given(name=name, scopes=listed(scopes, what="scopes"), expires_in_s=expires_in_s)
        return await self._transport.create(
            TokenCreated, "/v1/tokens", body=body, idempotency_key=idempotency_key
        )

    async def delete(self, token_id: str) -> None:
        """Revoke a token at once."""
        await self._transport.send("DELETE", f"/v1/tokens/{segment(token_id)}")
