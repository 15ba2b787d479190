"""Artifacts of attempts, and when the output of old ones was removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("attempts", sa.Column("output_removed_at", _TIME, nullable=True))
    op.create_index(
        "ix_attempts_output",
        "attempts",
        ["finished_at"],
        postgresql_where=sa.text("output_removed_at IS NULL"),
    )
    op.create_table(
        "artifacts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("attempt_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("received_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completed_at", _TIME, nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "size_bytes >= 0 AND received_bytes BETWEEN 0 AND size_bytes", name=op.f("ck_artifacts_sizes")
        ),
        sa.CheckConstraint(
            "completed_at IS NULL OR received_bytes = size_bytes", name=op.f("ck_artifacts_complete")
        ),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name=op.f("ck_artifacts_sha256_known")),
        sa.ForeignKeyConstraint(
            ["attempt_id"],
            ["attempts.id"],
            name=op.f("fk_artifacts_attempt_id_attempts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("attempt_id", "path", name=op.f("uq_artifacts_attempt_id_path")),
    )


def downgrade() -> None:
    op.drop_table("artifacts")
    op.drop_index("ix_attempts_output", "attempts")
    op.drop_column("attempts", "output_removed_at")
