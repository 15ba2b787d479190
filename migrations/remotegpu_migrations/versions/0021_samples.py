"""Samples of hosts in partitions, with their minutes and hours, and the number of the last heartbeat.

What was measured in the two hours before is dropped: it is shown for ten minutes only. The servers make the
partitions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_TABLES = ("host_samples", "host_sample_minutes", "host_sample_hours")


def upgrade() -> None:
    op.drop_table("host_samples")
    for name in _TABLES:
        op.create_table(
            name,
            sa.Column("host_id", sa.Text(), nullable=False),
            sa.Column("at", _TIME, nullable=False),
            sa.Column("n", sa.Integer(), server_default="1", nullable=False),
            *(sa.Column(part, JSONB(), nullable=False) for part in ("host", "gpus", "workloads")),
            sa.PrimaryKeyConstraint("host_id", "at", name=op.f(f"pk_{name}")),
            postgresql_partition_by="RANGE (at)",
        )
        op.create_index(f"ix_{name}_at", name, ["at"])
    op.add_column(
        "hosts", sa.Column("heartbeat_sequence", sa.BigInteger(), server_default="0", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("hosts", "heartbeat_sequence")
    for name in _TABLES:
        op.drop_table(name)
    op.create_table(
        "host_samples",
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("at", _TIME, server_default=sa.text("now()"), nullable=False),
        *(sa.Column(part, JSONB(), nullable=False) for part in ("host", "gpus", "workloads")),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_host_samples_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("host_id", "at", name=op.f("pk_host_samples")),
    )
