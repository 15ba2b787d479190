"""Webhooks, and their deliveries in the outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failing_since", _TIME, nullable=True),
        sa.Column("paused_until", _TIME, nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name=op.f("fk_webhooks_owner_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index("ix_webhooks_owner", "webhooks", ["owner_id", "created_at"])
    op.add_column("outbox", sa.Column("webhook_id", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_outbox_webhook_id_webhooks"),
        "outbox",
        "webhooks",
        ["webhook_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.create_index(
        "ix_outbox_webhook",
        "outbox",
        ["webhook_id", "created_at"],
        postgresql_where=sa.text("webhook_id IS NOT NULL"),
    )
    op.drop_constraint(op.f("ck_outbox_channel_known"), "outbox")
    op.create_check_constraint(op.f("ck_outbox_channel_known"), "outbox", "channel IN ('mail', 'webhook')")
    op.create_check_constraint(
        op.f("ck_outbox_of_a_webhook"), "outbox", "(channel = 'webhook') = (webhook_id IS NOT NULL)"
    )


def downgrade() -> None:
    op.execute("DELETE FROM outbox WHERE channel = 'webhook'")
    op.drop_constraint(op.f("ck_outbox_of_a_webhook"), "outbox")
    op.drop_constraint(op.f("ck_outbox_channel_known"), "outbox")
    op.create_check_constraint(op.f("ck_outbox_channel_known"), "outbox", "channel IN ('mail')")
    op.drop_index("ix_outbox_webhook", "outbox")
    op.drop_column("outbox", "webhook_id")
    op.drop_table("webhooks")
