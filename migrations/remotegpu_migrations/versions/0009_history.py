"""History of environments, placements and allocations, and the view of all allocations.

A later migration that changes a column of one of the three changes it in its history table too, and makes the
view again.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TABLES = ("environments", "placements", "allocations")


def upgrade() -> None:
    for table in _TABLES:
        op.execute(f"CREATE TABLE {table}_history (LIKE {table})")
        op.create_primary_key(op.f(f"pk_{table}_history"), f"{table}_history", ["id"])
    op.execute(
        "CREATE VIEW all_allocations AS SELECT * FROM allocations UNION ALL SELECT * FROM allocations_history"
    )


def downgrade() -> None:
    op.execute("DROP VIEW all_allocations")
    for table in _TABLES:
        # Back where they came from, so that nothing is lost; the newest first, as their keys ask for.
        op.execute(f"INSERT INTO {table} SELECT * FROM {table}_history")  # noqa: S608  names of this file
    for table in _TABLES:
        op.drop_table(f"{table}_history")
