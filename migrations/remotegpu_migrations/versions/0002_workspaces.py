"""Workspaces with everybody's personal one, the audit trail, notifications, and platform settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from remotegpu_server.db.tables import Xid8

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NOW = sa.text("now()")
_OBJECT = sa.text("'{}'::jsonb")


def upgrade() -> None:
    _create_workspaces()
    _make_personal_workspaces()
    _move_environments_into_workspaces()
    op.add_column("events", sa.Column("workspace_id", sa.Text(), nullable=True))
    _create_audit()
    _create_notifications()
    op.create_table(
        "platform_settings",
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("value", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_platform_settings")),
    )


def downgrade() -> None:
    for table in ("platform_settings", "notifications", "audit_records"):
        op.drop_table(table)
    op.execute("DROP FUNCTION audit_append_only()")
    for table in ("allocations", "placements", "environments", "events"):
        op.drop_column(table, "workspace_id")
    op.drop_index("ix_allocations_live_customer", table_name="allocations")
    op.drop_table("workspace_members")
    op.drop_table("workspaces")


def _create_workspaces() -> None:
    op.create_table(
        "workspaces",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("personal_of", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.CheckConstraint("kind IN ('personal', 'team')", name=op.f("ck_workspaces_kind_known")),
        sa.CheckConstraint("status IN ('active', 'archived')", name=op.f("ck_workspaces_status_known")),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 128", name=op.f("ck_workspaces_name_length")),
        sa.CheckConstraint(
            "(kind = 'personal') = (personal_of IS NOT NULL)", name=op.f("ck_workspaces_personal_owned")
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_workspaces_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["personal_of"], ["users.id"], name=op.f("fk_workspaces_personal_of_users"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workspaces")),
        sa.UniqueConstraint("id", "customer_id", name=op.f("uq_workspaces_id_customer_id")),
    )
    op.create_index(
        "uq_workspaces_customer_name",
        "workspaces",
        ["customer_id", "name"],
        unique=True,
        postgresql_where=sa.text("kind = 'team' AND status = 'active'"),
    )
    op.create_index("uq_workspaces_personal_of", "workspaces", ["personal_of"], unique=True)
    op.create_table(
        "workspace_members",
        sa.Column("workspace_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("joined_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "role IN ('owner', 'admin', 'member', 'viewer')", name=op.f("ck_workspace_members_role_known")
        ),
        sa.CheckConstraint(
            "status IN ('active', 'invited', 'suspended')", name=op.f("ck_workspace_members_status_known")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["workspaces.id"],
            name=op.f("fk_workspace_members_workspace_id_workspaces"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_workspace_members_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("workspace_id", "user_id", name=op.f("pk_workspace_members")),
    )
    op.create_index("ix_workspace_members_user", "workspace_members", ["user_id"])


def _make_personal_workspaces() -> None:
    """Ids as ``tables.new_id`` makes them, from the user's: both are unique."""
    op.execute(
        """
        INSERT INTO workspaces (id, customer_id, name, kind, personal_of)
        SELECT 'wsp-' || substr(id, 5), customer_id, username, 'personal', id FROM users
        """
    )
    op.execute(
        """
        INSERT INTO workspace_members (workspace_id, user_id, role, joined_at)
        SELECT id, personal_of, 'owner', created_at FROM workspaces
        """
    )


def _move_environments_into_workspaces() -> None:
    for table, owner in (("environments", "owner_id"), ("placements", "user_id"), ("allocations", "user_id")):
        op.add_column(table, sa.Column("workspace_id", sa.Text(), nullable=True))
        op.execute(
            f"UPDATE {table} SET workspace_id = w.id FROM workspaces w WHERE w.personal_of = {table}.{owner}"  # noqa: S608
        )
        op.alter_column(table, "workspace_id", nullable=False)
    op.create_foreign_key(
        op.f("fk_environments_workspace_id_customer_id_workspaces"),
        "environments",
        "workspaces",
        ["workspace_id", "customer_id"],
        ["id", "customer_id"],
        ondelete="RESTRICT",
    )
    op.create_index("ix_environments_workspace", "environments", ["workspace_id"])
    for table in ("placements", "allocations"):
        op.create_foreign_key(
            op.f(f"fk_{table}_workspace_id_workspaces"),
            table,
            "workspaces",
            ["workspace_id"],
            ["id"],
            ondelete="RESTRICT",
        )
    for table, column in (
        ("placements", "workspace"),
        ("allocations", "workspace"),
        ("allocations", "customer"),
    ):
        op.create_index(
            f"ix_{table}_live_{column}",
            table,
            [f"{column}_id"],
            postgresql_where=sa.text("released_at IS NULL"),
        )


def _create_audit() -> None:
    op.create_table(
        "audit_records",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("acted_for", sa.Text(), nullable=True),
        sa.Column("token_id", sa.Text(), nullable=True),
        sa.Column("customer_id", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Text(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), server_default=_OBJECT, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('done', 'refused', 'failed')", name=op.f("ck_audit_records_outcome_known")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_records")),
        sa.UniqueConstraint("sequence", name=op.f("uq_audit_records_sequence")),
    )
    op.create_index("ix_audit_records_position", "audit_records", ["xid", "id"])
    op.create_index(
        "ix_audit_records_unsealed",
        "audit_records",
        ["xid", "id"],
        postgresql_where=sa.text("sequence IS NULL"),
    )
    op.create_index("ix_audit_records_at", "audit_records", ["at"])
    op.create_index("ix_audit_records_actor", "audit_records", ["actor", "at"])
    op.create_index("ix_audit_records_resource", "audit_records", ["resource_type", "resource_id", "at"])
    op.execute(
        """
        CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' AND OLD.sequence IS NULL AND NEW.sequence IS NOT NULL
               AND to_jsonb(OLD) - 'sequence' - 'hash' = to_jsonb(NEW) - 'sequence' - 'hash' THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION 'the audit trail is append-only'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'audit_append_only';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit_records
        FOR EACH ROW EXECUTE FUNCTION audit_append_only()
        """
    )
    op.execute(
        """
        CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit_records
        FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()
        """
    )


def _create_notifications() -> None:
    op.create_table(
        "notifications",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("subject_type", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), server_default=_OBJECT, nullable=False),
        sa.Column("dedupe_key", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "level IN ('info', 'warning', 'error')", name=op.f("ck_notifications_level_known")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_notifications_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notifications")),
    )
    op.create_index(
        "uq_notifications_user_dedupe",
        "notifications",
        ["user_id", "dedupe_key"],
        unique=True,
        postgresql_where=sa.text("dedupe_key IS NOT NULL"),
    )
    op.create_index("ix_notifications_user", "notifications", ["user_id", "created_at"])
    op.create_index(
        "ix_notifications_unread", "notifications", ["user_id"], postgresql_where=sa.text("read_at IS NULL")
    )
