# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Users: the logins."""

from __future__ import annotations

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.identity import User, UserCreated


class SyncUsers(SyncResource):
    """Users: the logins. For admins, and for owners in their customer. A user is named by id or user name."""

    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Page[User]:
        """The users that the caller may see."""
        return fetch_page(self._transport, User, "/v1/users", given(limit=limit, cursor=cursor))

    def create(
        self,
        *,
        username: str,
        customer: str | None = None,
        display_name: str | None = None,
        email: str | None = None,
        role: str | None = None,
        password: str | None = None,
        idempotency_key: str | None = None,
    ) -> UserCreated:
        """A new login. Without `password` the server makes a one-time password and answers with it once."""
        body = given(
            username=username,
            customer=customer,
            display_name=display_name,
            email=email,
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
        email: str | None = None,
        role: str | None = None,
    ) -> User:
        """Change what is given."""
        body = given(display_name=display_name, email=email, role=role)
        return self._transport.call(User, "PATCH", f"/v1/users/{segment(user)}", body=body)

    def suspend(self, user: str) -> User:
        """Keep the user out: every token ends at once. What runs is kept."""
        return self._transport.put_in_state(User, f"/v1/users/{segment(user)}:suspend")

    def resume(self, user: str) -> User:
        """End a suspension."""
        return self._transport.put_in_state(User, f"/v1/users/{segment(user)}:resume")

    def reset_password(self, user: str) -> UserCreated:
        """Make a new one-time password, shown this once."""
        return self._transport.call(UserCreated, "POST", f"/v1/users/{segment(user)}:reset-password")
