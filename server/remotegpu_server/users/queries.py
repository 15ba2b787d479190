"""Finding users together with their customer."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables


class UserWithCustomer(NamedTuple):
    """A user's row and its customer's."""

    user: tables.User
    customer: tables.Customer


def users_with_customers() -> Select[tables.User, tables.Customer]:
    """All users; narrow it with ``where``."""
    return (
        select(tables.User, tables.Customer)
        .join(tables.Customer, tables.Customer.id == tables.User.customer_id)
        .execution_options(populate_existing=True)
    )


async def user_by_username(db: AsyncSession, username: str) -> UserWithCustomer | None:
    """The user of that name."""
    row = (await db.execute(users_with_customers().where(tables.User.username == username))).one_or_none()
    return UserWithCustomer(*row) if row else None
