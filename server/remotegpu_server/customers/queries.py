"""Customers with what is counted of them: live rows, no counters."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, ScalarSelect, Select, func, select

from remotegpu_server.db import tables


class CustomerWithCounts(NamedTuple):
    """A customer's row with its counts."""

    customer: tables.Customer
    users: int
    environments: int
    gpus: int


def customers_with_counts() -> Select[tables.Customer, int, int, int]:
    """All customers; narrow it with ``where``. One statement, whatever their number."""
    row, user, placed, held = tables.Customer, tables.User, tables.Placement, tables.Allocation
    return select(
        row,
        _count(user.customer_id == row.id, user.status != "deleted"),
        _count(placed.customer_id == row.id, placed.released_at.is_(None)),
        _count(held.customer_id == row.id, held.released_at.is_(None)),
    ).execution_options(populate_existing=True)


def _count(*where: ColumnElement[bool]) -> ScalarSelect[Any]:
    return select(func.count()).where(*where).correlate(tables.Customer).scalar_subquery()
