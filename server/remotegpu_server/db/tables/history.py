"""Finished rows, moved out of the hot tables: the same columns, and no constraint but the key.

``all_allocations`` is the view of both, for statistics over a time that is longer than the retention.
"""

from __future__ import annotations

from sqlalchemy import Column, Table

from remotegpu_server.db.tables.allocations import Allocation, Placement
from remotegpu_server.db.tables.base import Base
from remotegpu_server.db.tables.environments import Environment


def _history_of(live: type[Base]) -> Table:
    columns = [
        Column(column.name, column.type, primary_key=column.primary_key, nullable=column.nullable)
        for column in live.__table__.columns
    ]
    return Table(f"{live.__tablename__}_history", Base.metadata, *columns)


environments_history = _history_of(Environment)
placements_history = _history_of(Placement)
allocations_history = _history_of(Allocation)
