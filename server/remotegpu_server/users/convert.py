"""Rows to wire."""

from __future__ import annotations

from remotegpu.types.identity import AccountStatus, User, UserRole
from remotegpu_server.users.queries import UserWithCustomer


def to_wire(found: UserWithCustomer) -> User:
    """A user as answered: never with the password hash."""
    user, customer = found
    return User(
        id=user.id,
        username=user.username,
        display_name=user.display_name,
        full_name=user.full_name,
        email=user.email,
        phone=user.phone,
        avatar_url=user.avatar_url,
        role=UserRole(user.role),
        status=AccountStatus(user.status),
        customer_id=customer.id,
        customer_name=customer.name,
        password_change_required=user.password_change_required,
        stop_environments_at=user.stop_environments_at,
        created_at=user.created_at,
    )
