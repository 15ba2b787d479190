"""Rows to wire."""

from __future__ import annotations

from remotegpu.types.identity import AccountStatus, Customer
from remotegpu_server.db import tables


def to_wire(row: tables.Customer) -> Customer:
    """A customer as answered."""
    return Customer(
        id=row.id,
        name=row.name,
        display_name=row.display_name,
        status=AccountStatus(row.status),
        created_at=row.created_at,
    )
