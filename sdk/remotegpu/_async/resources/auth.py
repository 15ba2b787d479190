"""Signing in and out."""

from __future__ import annotations

from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import decode, given
from remotegpu.types.identity import OidcStart, SignInMethods, TokenCreated, User


class AsyncAuth(AsyncResource):
    """Signing in and out."""

    async def login(self, *, username: str, password: str, expires_in_s: int | None = None) -> TokenCreated:
        """Get a session token for a name and a password. The client itself stays as it is."""
        body = given(username=username, password=password, expires_in_s=expires_in_s)
        return decode(
            TokenCreated, await self._transport.send("POST", "/v1/auth/login", body=body, anonymous=True)
        )

    async def logout(self) -> None:
        """End the session: revoke the token that this client uses."""
        await self._transport.send("POST", "/v1/auth/logout")

    async def methods(self) -> SignInMethods:
        """How people sign in here."""
        return decode(SignInMethods, await self._transport.send("GET", "/v1/auth/methods", anonymous=True))

    async def start_oidc(self) -> OidcStart:
        """Begin a sign-in at the identity provider: where the browser goes."""
        return decode(OidcStart, await self._transport.send("POST", "/v1/auth/oidc:start", anonymous=True))

    async def finish_oidc(self, *, state: str, code: str) -> TokenCreated:
        """Get a session token for what came back from the identity provider."""
        body = {"state": state, "code": code}
        return decode(
            TokenCreated,
            await self._transport.send("POST", "/v1/auth/oidc:finish", body=body, anonymous=True),
        )

    async def request_password_reset(self, user: str) -> None:
        """Let the server mail a link to a new password. Says nothing about whether it did."""
        await self._transport.send("POST", "/v1/auth/password-reset", body={"user": user}, anonymous=True)

    async def finish_password_reset(self, *, secret: str, new_password: str) -> None:
        """Set a new password with the secret of a link."""
        body = {"secret": secret, "new_password": new_password}
        await self._transport.send("POST", "/v1/auth/password-reset:finish", body=body, anonymous=True)

    async def verify(self, *, username: str, password: str, client_address: str | None = None) -> User:
        """Check a name and a password without a session. For services; `client_address` is the person's,
        against which wrong passwords are counted.
        """
        response = await self._transport.send(
            "POST",
            "/v1/auth/verify",
            body={"username": username, "password": password},
            headers={} if client_address is None else {"X-Forwarded-For": client_address},
        )
        return decode(User, response)
