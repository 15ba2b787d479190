"""The outbox, preferences of notifications, and their place in a stream."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from remotegpu_server.db.tables import Xid8

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("now()")


def upgrade() -> None:
    op.add_column(
        "notifications",
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
    )
    op.add_column("notifications", sa.Column("position", sa.BigInteger(), sa.Identity(), nullable=False))
    op.add_column(
        "notifications", sa.Column("in_app", sa.Boolean(), server_default=sa.text("true"), nullable=False)
    )
    op.add_column(
        "notifications", sa.Column("digest", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.create_index("ix_notifications_position", "notifications", ["user_id", "xid", "position"])
    op.create_index("ix_notifications_created", "notifications", ["created_at"])
    op.create_index(
        "ix_notifications_digest", "notifications", ["user_id"], postgresql_where=sa.text("digest")
    )
    op.create_table(
        "notification_preferences",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("in_app", sa.Boolean(), nullable=False),
        sa.Column("mail", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "mail IN ('now', 'digest', 'off')", name=op.f("ck_notification_preferences_mail_known")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_notification_preferences_user_id_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "kind", name=op.f("pk_notification_preferences")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("due_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("leased_until", _TIME, nullable=True),
        sa.Column("delivered_at", _TIME, nullable=True),
        sa.Column("dead_at", _TIME, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("channel IN ('mail')", name=op.f("ck_outbox_channel_known")),
        sa.CheckConstraint("delivered_at IS NULL OR dead_at IS NULL", name=op.f("ck_outbox_one_end")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_outbox_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(
        "ix_outbox_due",
        "outbox",
        ["channel", "due_at"],
        postgresql_where=sa.text("delivered_at IS NULL AND dead_at IS NULL"),
    )
    op.create_index("ix_outbox_user", "outbox", ["user_id", "created_at"])
    op.create_index("ix_outbox_created", "outbox", ["created_at"])


def downgrade() -> None:
    op.drop_table("outbox")
    op.drop_table("notification_preferences")
    for name in ("digest", "created", "position"):
        op.drop_index(f"ix_notifications_{name}", "notifications")
    for name in ("digest", "in_app", "position", "xid"):
        op.drop_column("notifications", name)
