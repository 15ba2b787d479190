# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Signing in and out."""

from __future__ import annotations

from remotegpu._protocol import decode, given
from remotegpu._sync.resource import SyncResource
from remotegpu.types.identity import OidcStart, SignInMethods, TokenCreated, User


class SyncAuth(SyncResource):
    """Signing in and out."""

    def login(self, *, username: str, password: str, expires_in_s: int | None = None) -> TokenCreated:
        """Get a session token for a name and a password. The client itself stays as it is."""
        body = given(username=username, password=password, expires_in_s=expires_in_s)
        return decode(TokenCreated, self._transport.send("POST", "/v1/auth/login", body=body, anonymous=True))

    def logout(self) -> None:
        """End the session: revoke the token that this client uses."""
        self._transport.send("POST", "/v1/auth/logout")

    def methods(self) -> SignInMethods:
        """How people sign in here."""
        return decode(SignInMethods, self._transport.send("GET", "/v1/auth/methods", anonymous=True))

    def start_oidc(self) -> OidcStart:
        """Begin a sign-in at the identity provider: where the browser goes."""
        return decode(OidcStart, self._transport.send("POST", "/v1/auth/oidc:start", anonymous=True))

    def finish_oidc(self, *, state: str, code: str) -> TokenCreated:
        """Get a session token for what came back from the identity provider."""
        body = {"state": state, "code": code}
        return decode(
            TokenCreated,
            self._transport.send("POST", "/v1/auth/oidc:finish", body=body, anonymous=True),
        )

    def request_password_reset(self, user: str) -> None:
        """Let the server mail a link to a new password. Says nothing about whether it did."""
        self._transport.send("POST", "/v1/auth/password-reset", body={"user": user}, anonymous=True)

    def finish_password_reset(self, *, secret: str, new_password: str) -> None:
        """Set a new password with the secret of a link."""
        body = {"secret": secret, "new_password": new_password}
        self._transport.send("POST", "/v1/auth/password-reset:finish", body=body, anonymous=True)

    def verify(self, *, username: str, password: str, client_address: str | None = None) -> User:
        """Check a name and a password without a session. For services; `client_address` is the person's,
        against which wrong passwords are counted.
        """
        response = self._transport.send(
            "POST",
            "/v1/auth/verify",
            body={"username": username, "password": password},
            headers={} if client_address is None else {"X-Forwarded-For": client_address},
        )
        return decode(User, response)
