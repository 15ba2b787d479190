"""Profiles, suspension with a policy, deleted accounts, password resets, OIDC, owners of workspaces."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NOW = sa.text("now()")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _profiles()
    _suspension()
    _workspaces()
    _password_resets()
    _oidc()
    op.create_index("ix_audit_records_action", "audit_records", ["action", "at"])


def downgrade() -> None:
    op.drop_index("ix_audit_records_action", table_name="audit_records")
    op.drop_table("oidc_logins")
    op.drop_table("password_resets")
    op.drop_index("uq_workspace_members_owner", table_name="workspace_members")
    op.execute("UPDATE workspaces SET status = 'archived' WHERE status = 'deleted'")
    _replace_check("workspaces", "status IN ('active', 'archived')")
    op.execute("UPDATE users SET status = 'suspended' WHERE status = 'deleted'")
    _replace_check("users", "status IN ('active', 'suspended')")
    for index in ("uq_users_email", "uq_users_oidc"):
        op.drop_index(index, table_name="users")
    op.drop_constraint(op.f("ck_users_oidc_whole"), "users")
    for column in (
        "full_name",
        "phone",
        "avatar_url",
        "password_change_required",
        "oidc_issuer",
        "oidc_subject",
        "stop_environments_at",
    ):
        op.drop_column("users", column)
    op.drop_index("uq_customers_code", table_name="customers")
    for column in ("company", "code", "stop_environments_at"):
        op.drop_column("customers", column)


def _replace_check(table: str, condition: str) -> None:
    op.drop_constraint(op.f(f"ck_{table}_status_known"), table)
    op.create_check_constraint(op.f(f"ck_{table}_status_known"), table, condition)


def _profiles() -> None:
    op.add_column("customers", sa.Column("company", sa.Text(), server_default="", nullable=False))
    op.add_column("customers", sa.Column("code", sa.Text(), nullable=True))
    op.create_index("uq_customers_code", "customers", ["code"], unique=True)
    op.add_column("users", sa.Column("full_name", sa.Text(), server_default="", nullable=False))
    op.add_column("users", sa.Column("phone", sa.Text(), nullable=True))
    op.add_column("users", sa.Column("avatar_url", sa.Text(), nullable=True))
    # Addresses were not unique before: the oldest account keeps one, and nobody loses a login for it.
    op.execute(
        """
        UPDATE users SET email = NULL WHERE email IS NOT NULL AND EXISTS (
            SELECT 1 FROM users older WHERE lower(older.email) = lower(users.email)
              AND (older.created_at, older.id) < (users.created_at, users.id))
        """
    )
    _replace_check("users", "status IN ('active', 'suspended', 'deleted')")
    op.create_index(
        "uq_users_email",
        "users",
        [sa.text("lower(email)")],
        unique=True,
        postgresql_where=sa.text("status <> 'deleted'"),
    )


def _suspension() -> None:
    for table in ("customers", "users"):
        op.add_column(table, sa.Column("stop_environments_at", _TIME, nullable=True))


def _workspaces() -> None:
    _replace_check("workspaces", "status IN ('active', 'archived', 'deleted')")
    op.create_index(
        "uq_workspace_members_owner",
        "workspace_members",
        ["workspace_id"],
        unique=True,
        postgresql_where=sa.text("role = 'owner'"),
    )


def _password_resets() -> None:
    op.add_column(
        "users",
        sa.Column("password_change_required", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.create_table(
        "password_resets",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME, nullable=True),
        sa.Column("mail", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_password_resets_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_password_resets")),
    )
    op.create_index("ix_password_resets_user", "password_resets", ["user_id"])


def _oidc() -> None:
    op.add_column("users", sa.Column("oidc_issuer", sa.Text(), nullable=True))
    op.add_column("users", sa.Column("oidc_subject", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_users_oidc_whole"), "users", "(oidc_issuer IS NULL) = (oidc_subject IS NULL)"
    )
    op.create_index("uq_users_oidc", "users", ["oidc_issuer", "oidc_subject"], unique=True)
    op.create_table(
        "oidc_logins",
        sa.Column("state_hash", sa.LargeBinary(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("verifier", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.PrimaryKeyConstraint("state_hash", name=op.f("pk_oidc_logins")),
    )
    op.create_index("ix_oidc_logins_created_at", "oidc_logins", ["created_at"])
