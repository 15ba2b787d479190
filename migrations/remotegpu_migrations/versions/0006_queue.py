"""The queue: order, preemption, reservations, estimates that are back-tested, places kept for hub servers."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_JSON = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    _create_reservations()
    for column in _columns():
        op.add_column("environments", column)
    op.create_check_constraint(
        op.f("ck_environments_priority_known"), "environments", "priority BETWEEN 1 AND 9"
    )
    op.create_foreign_key(
        op.f("fk_environments_reservation_id_reservations"),
        "environments",
        "reservations",
        ["reservation_id"],
        ["id"],
        ondelete="RESTRICT",
    )
    op.create_index(
        "ix_environments_reservation",
        "environments",
        ["reservation_id"],
        postgresql_where=sa.text("reservation_id IS NOT NULL"),
    )
    op.create_index("ix_allocations_customer_released", "allocations", ["customer_id", "released_at"])
    _create_start_estimates()
    _create_hub_starts()


def downgrade() -> None:
    op.drop_table("hub_starts")
    op.drop_table("start_estimates")
    op.drop_index("ix_allocations_customer_released", table_name="allocations")
    op.drop_index("ix_environments_reservation", table_name="environments")
    op.drop_constraint(op.f("fk_environments_reservation_id_reservations"), "environments")
    op.drop_constraint(op.f("ck_environments_priority_known"), "environments")
    for column in reversed(_columns()):
        op.drop_column("environments", column.name)
    op.drop_table("reservations")


def _columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("priority", sa.Integer(), server_default="5", nullable=False),
        sa.Column("preemptible", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("min_run_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("start_at", _TIME, nullable=True),
        sa.Column("reservation_id", sa.Text(), nullable=True),
        sa.Column("preempt_at", _TIME, nullable=True),
        sa.Column("outlook", _JSON, nullable=True),
    )


def _create_reservations() -> None:
    op.create_table(
        "reservations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("workspace_id", sa.Text(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_model", sa.Text(), nullable=True),
        sa.Column("host_labels", _JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("starts_at", _TIME, nullable=False),
        sa.Column("ends_at", _TIME, nullable=False),
        sa.Column("state", sa.Text(), server_default="scheduled", nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("used_at", _TIME, nullable=True),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "state IN ('scheduled', 'active', 'ended', 'unused', 'cancelled')",
            name=op.f("ck_reservations_state_known"),
        ),
        sa.CheckConstraint("gpus > 0 AND ends_at > starts_at", name=op.f("ck_reservations_sizes")),
        sa.CheckConstraint(
            "(state IN ('scheduled', 'active')) = (ended_at IS NULL)",
            name=op.f("ck_reservations_ended_at_when_over"),
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_reservations_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["workspaces.id"],
            name=op.f("fk_reservations_workspace_id_workspaces"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["created_by"],
            ["users.id"],
            name=op.f("fk_reservations_created_by_users"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservations")),
    )
    op.create_index(
        "ix_reservations_open",
        "reservations",
        ["starts_at", "ends_at"],
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index("ix_reservations_customer", "reservations", ["customer_id", "starts_at"])


def _create_start_estimates() -> None:
    op.create_table(
        "start_estimates",
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("estimated_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("p50_at", _TIME, nullable=False),
        sa.Column("p90_at", _TIME, nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.CheckConstraint("p50_at <= p90_at", name=op.f("ck_start_estimates_ordered")),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environments.id"],
            name=op.f("fk_start_estimates_environment_id_environments"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("environment_id", "generation", name=op.f("pk_start_estimates")),
    )
    op.create_index(
        "ix_start_estimates_started",
        "start_estimates",
        ["started_at"],
        postgresql_where=sa.text("started_at IS NOT NULL"),
    )


def _create_hub_starts() -> None:
    op.create_table(
        "hub_starts",
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("hub_user", sa.Text(), nullable=False),
        sa.Column("hub_server", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="waiting", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.CheckConstraint("state IN ('waiting', 'due')", name=op.f("ck_hub_starts_state_known")),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environments.id"],
            name=op.f("fk_hub_starts_environment_id_environments"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("environment_id", name=op.f("pk_hub_starts")),
    )
