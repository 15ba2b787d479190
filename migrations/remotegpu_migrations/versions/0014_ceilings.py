"""Ceilings of the lifetime, by image and by workspace."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("images", "workspaces"):
        op.add_column(table, sa.Column("max_lifetime_s", sa.Float(), nullable=True))
        op.create_check_constraint(op.f(f"ck_{table}_ceiling"), table, "max_lifetime_s > 0")


def downgrade() -> None:
    for table in ("images", "workspaces"):
        op.drop_column(table, "max_lifetime_s")
