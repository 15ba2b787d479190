"""The caller."""

from __future__ import annotations

from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given
from remotegpu.types.identity import Identity, User


class AsyncMe(AsyncResource):
    """The caller."""

    async def get(self) -> Identity:
        """Who this client is, as the server sees it."""
        return await self._transport.call(Identity, "GET", "/v1/me")

    async def update(
        self,
        *,
        display_name: str | None = None,
        full_name: str | None = None,
        email: str | None = None,
        phone: str | None = None,
        avatar_url: str | None = None,
    ) -> User:
        """Change what is given of the own profile."""
        body = given(
            display_name=display_name, full_name=full_name, email=email, phone=phone, avatar_url=avatar_url
        )
        return await self._transport.call(User, "PATCH", "/v1/me", body=body)

    async def change_password(
        self, *, current_password: str, new_password: str, client_address: str | None = None
    ) -> None:
        """Set a new password; every other session of the user ends. `client_address` is for services: the
        person's, against which wrong passwords are counted.
        """
        await self._transport.send(
            "POST",
            "/v1/me/password",
            body={"current_password": current_password, "new_password": new_password},
            headers={} if client_address is None else {"X-Forwarded-For": client_address},
        )
