"""Environments: stop times, idle policies, the other ports that they offer; SSH keys."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_JSON = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    for column in _columns():
        op.add_column("environments", column)
    # Which ones the hub started was not kept until now; refusing to rename one too many breaks nothing.
    op.execute("UPDATE environments SET hub_managed = true WHERE status <> 'deleted'")
    op.create_check_constraint(
        op.f("ck_environments_idle_stage_known"), "environments", "idle_stage IN ('notice', 'warned')"
    )
    op.create_check_constraint(
        op.f("ck_environments_idle_warned_first"),
        "environments",
        "(idle_stop_at IS NOT NULL) <= (idle_stage IS NOT DISTINCT FROM 'warned')",
    )
    op.create_index(
        "ix_environments_deadline",
        "environments",
        ["deadline_at"],
        postgresql_where=sa.text("deadline_at IS NOT NULL AND desired = 'running'"),
    )
    op.add_column("hosts", sa.Column("keys_digest", sa.Text(), server_default="", nullable=False))
    _create_ssh_keys()


def downgrade() -> None:
    op.drop_table("ssh_keys")
    op.drop_column("hosts", "keys_digest")
    op.drop_index("ix_environments_deadline", table_name="environments")
    op.drop_constraint(op.f("ck_environments_idle_warned_first"), "environments")
    op.drop_constraint(op.f("ck_environments_idle_stage_known"), "environments")
    for column in reversed(_columns()):
        op.drop_column("environments", column.name)


def _create_ssh_keys() -> None:
    op.create_table(
        "ssh_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_type", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 64", name=op.f("ck_ssh_keys_name_length")),
        sa.CheckConstraint(
            "public_key ~ '^[a-z0-9@.-]+ [A-Za-z0-9+/]+=*$'", name=op.f("ck_ssh_keys_one_line")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_ssh_keys_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ssh_keys")),
        sa.UniqueConstraint("user_id", "fingerprint", name=op.f("uq_ssh_keys_user_id_fingerprint")),
    )
    op.create_index("ix_ssh_keys_user", "ssh_keys", ["user_id", "created_at"])


def _columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("hub_managed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("endpoints", _JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("stop_at", _TIME, nullable=True),
        sa.Column("max_lifetime_s", sa.Double(), nullable=True),
        sa.Column("deadline_at", _TIME, nullable=True),
        sa.Column("deadline_warned_s", sa.Double(), nullable=True),
        sa.Column("idle_policy", _JSON, nullable=True),
        sa.Column("idle_since", _TIME, nullable=True),
        sa.Column("idle_stage", sa.Text(), nullable=True),
        sa.Column("idle_stop_at", _TIME, nullable=True),
    )
