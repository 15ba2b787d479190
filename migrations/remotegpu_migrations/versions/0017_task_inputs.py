"""Files that are sent before the tasks that read them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "task_inputs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completed_at", _TIME, nullable=True),
        sa.Column("used_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("removing_at", _TIME, nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "size_bytes > 0 AND received_bytes BETWEEN 0 AND size_bytes", name=op.f("ck_task_inputs_sizes")
        ),
        sa.CheckConstraint(
            "completed_at IS NULL OR received_bytes = size_bytes", name=op.f("ck_task_inputs_complete")
        ),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name=op.f("ck_task_inputs_sha256_known")),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name=op.f("fk_task_inputs_owner_id_users"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_inputs")),
    )
    op.create_index(
        "uq_task_inputs_owner_sha256",
        "task_inputs",
        ["owner_id", "sha256"],
        unique=True,
        postgresql_where=sa.text("removing_at IS NULL"),
    )
    op.add_column("tasks", sa.Column("input_sha256", sa.Text(), nullable=True))
    op.add_column("tasks", sa.Column("input_size_bytes", sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_tasks_input_whole"), "tasks", "(input_sha256 IS NULL) = (input_size_bytes IS NULL)"
    )
    op.create_index(
        "ix_tasks_input",
        "tasks",
        ["owner_id", "input_sha256"],
        postgresql_where=sa.text("input_sha256 IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_tasks_input", "tasks")
    op.drop_column("tasks", "input_size_bytes")
    op.drop_column("tasks", "input_sha256")
    op.drop_table("task_inputs")
