# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Users: the logins."""

from __future__ import annotations

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.identity import PasswordResetLink, Token, User, UserCreated


class SyncUsers(SyncResource):
    """Users: the logins. For admins, and for owners in their customer. A user is named by id or user name."""

    def list(
        self, *, status: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[User]:
        """The users that the caller may see; deleted ones with `status="deleted"`."""
        query = given(status=status, limit=limit, cursor=cursor)
        return fetch_page(self._transport, User, "/v1/users", query)

    def create(
        self,
        *,
        username: str,
        customer: str | None = None,
        display_name: str | None = None,
        full_name: str | None = None,
        email: str | None = None,
        phone: str | None = None,
        role: str | None = None,
        password: str | None = None,
        idempotency_key: str | None = None,
    ) -> UserCreated:
        """A new login. Without `password` the server makes a one-time password and answers with it once."""
        body = given(
            username=username,
            customer=customer,
            display_name=display_name,
            full_name=full_name,
            email=email,
            phone=phone,
            role=role,
            password=password,
        )
        return self._transport.create(UserCreated, "/v1/users", body=body, idempotency_key=idempotency_key)

    def get(self, user: str) -> User:
        """One user."""
        return self._transport.call(User, "GET", f"/v1/users/{segment(user)}")

    def update(
        self,
        user: str,
        *,
        display_name: str | None = None,
        full_name: str | None = None,
        email: str | None = None,
        phone: str | None = None,
        avatar_url: str | None = None,
        role: str | None = None,
    ) -> User:
        """Change what is given."""
        body = given(
            display_name=display_name,
            full_name=full_name,
            email=email,
            phone=phone,
            avatar_url=avatar_url,
            role=role,
        )
        return self._transport.call(User, "PATCH", f"/v1/users/{segment(user)}", body=body)

    def delete(self, user: str, *, environments: str | None = None, grace_s: int | None = None) -> None:
        """End the account for good; its name stays taken. `environments`: `stop` (the default), `keep` or
        `stop_after_grace` what runs.
        """
        params = given(environments=environments, grace_s=grace_s)
        self._transport.send("DELETE", f"/v1/users/{segment(user)}", params=params)

    def suspend(self, user: str, *, environments: str | None = None, grace_s: int | None = None) -> User:
        """Keep the user out: every token ends at once. `environments`: `keep` (the default), `stop` or
        `stop_after_grace` what runs.
        """
        return self._transport.put_in_state(
            User,
            f"/v1/users/{segment(user)}:suspend",
            body=given(environments=environments, grace_s=grace_s),
        )

    def tokens(self, user: str, *, limit: int | None = None, cursor: str | None = None) -> Page[Token]:
        """A user's sessions and API tokens that still work; ``tokens.delete`` ends one."""
        path = f"/v1/users/{segment(user)}/tokens"
        return fetch_page(self._transport, Token, path, given(limit=limit, cursor=cursor))

    def resume(self, user: str) -> User:
        """End a suspension."""
        return self._transport.put_in_state(User, f"/v1/users/{segment(user)}:resume")

    def create_password_reset(self, user: str, *, idempotency_key: str | None = None) -> PasswordResetLink:
        """Make a one-time link with which the person sets a new password; shown this once."""
        path = f"/v1/users/{segment(user)}/password-resets"
        return self._transport.create(PasswordResetLink, path, body=None, idempotency_key=idempotency_key)

    def reset_password(self, user: str) -> UserCreated:
        """Make a new one-time password, shown this once."""
        return self._transport.call(UserCreated, "POST", f"/v1/users/{segment(user)}:reset-password")
