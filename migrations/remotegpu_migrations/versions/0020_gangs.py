"""Tasks on several hosts: who is ready, where rank 0 is found, and never two ranks on one host."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("attempts", sa.Column("rendezvous_address", sa.Text(), nullable=True))
    op.add_column("attempts", sa.Column("rendezvous_port", sa.Integer(), nullable=True))
    op.create_check_constraint(
        op.f("ck_attempts_rendezvous_at_rank_0"),
        "attempts",
        "(rendezvous_address IS NULL) = (rendezvous_port IS NULL) AND (rendezvous_port IS NULL OR rank = 0)",
    )
    op.create_index("uq_attempts_host_of_try", "attempts", ["task_id", "number", "host_id"], unique=True)
    op.create_index(
        "uq_attempts_rendezvous",
        "attempts",
        ["rendezvous_address", "rendezvous_port"],
        unique=True,
        postgresql_where=sa.text(
            "rendezvous_port IS NOT NULL AND (finished_at IS NULL OR lost_at IS NOT NULL)"
        ),
    )


def downgrade() -> None:
    op.drop_index("uq_attempts_rendezvous", "attempts")
    op.drop_index("uq_attempts_host_of_try", "attempts")
    op.drop_constraint(op.f("ck_attempts_rendezvous_at_rank_0"), "attempts")
    for column in ("rendezvous_port", "rendezvous_address", "ready_at"):
        op.drop_column("attempts", column)
