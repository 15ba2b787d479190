"""Rows to wire."""

from __future__ import annotations

from remotegpu.types.identity import AccountStatus, Customer
from remotegpu_server.customers.queries import CustomerWithCounts


def to_wire(found: CustomerWithCounts) -> Customer:
    """A customer as answered."""
    row = found.customer
    return Customer(
        id=row.id,
        name=row.name,
        display_name=row.display_name,
        company=row.company,
        code=row.code,
        status=AccountStatus(row.status),
        stop_environments_at=row.stop_environments_at,
        users=found.users,
        environments=found.environments,
        gpus=found.gpus,
        created_at=row.created_at,
    )
