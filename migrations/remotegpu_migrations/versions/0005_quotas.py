"""Limits of workspaces, GPU-hours, policies, requests for more, usage, and the catalogue of images."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_NOW = sa.text("now()")
_SUBJECTS = "subject_type IN ('user', 'workspace', 'customer')"
_RESOURCES = (
    "resource IN ('gpus', 'gpu_hours', 'cpus', 'memory_bytes', 'storage_bytes', 'environments', 'tasks')"
)
_LIMIT = "limit_value IS NULL OR limit_value >= 0"
_WINDOW = "(resource = 'gpu_hours') = (window_s IS NOT NULL)"
_GIB = 2**30
_LEVELS = {
    "free": ("For trying out.", 4, 8, 0, 10, 1),
    "basic": ("For one person's daily work.", 8, 16, 1, 50, 3),
    "pro": ("For training.", 16, 32, 2, 200, 10),
}
"""CPUs, GiB of memory, GPUs, GiB of storage, environments."""


def upgrade() -> None:
    _create_policies()
    _widen_quotas()
    _create_requests()
    _widen_images()
    op.add_column("placements", sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("placements", "queued_at")
    op.drop_table("workspace_images")
    op.execute("UPDATE images SET status = 'withdrawn' WHERE status IN ('inactive', 'deprecated')")
    op.drop_constraint("ck_images_status_known", "images")
    op.create_check_constraint(op.f("ck_images_status_known"), "images", "status IN ('active', 'withdrawn')")
    for name in ("visibility", "customer_id", "workspace_id", *(one.name for one in _image_columns())):
        op.drop_column("images", name)
    op.drop_table("quota_requests")
    op.execute(
        "DELETE FROM quotas WHERE policy_id IS NOT NULL OR subject_type = 'workspace'"
        " OR resource IN ('gpu_hours', 'storage_bytes', 'tasks')"
    )
    for column in ("window_s", "policy_id", "granted_value", "granted_until", "warned_at", "exceeded_at"):
        op.drop_column("quotas", column)
    op.drop_constraint("ck_quotas_subject_type_known", "quotas")
    op.drop_constraint("ck_quotas_resource_known", "quotas")
    op.create_check_constraint(
        op.f("ck_quotas_subject_type_known"), "quotas", "subject_type IN ('user', 'customer')"
    )
    op.create_check_constraint(
        op.f("ck_quotas_resource_known"),
        "quotas",
        "resource IN ('gpus', 'environments', 'cpus', 'memory_bytes')",
    )
    for table in ("quota_policy_targets", "quota_policy_limits", "quota_policies"):
        op.drop_table(table)


def _create_policies() -> None:
    policies = op.create_table(
        "quota_policies",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quota_policies")),
        sa.UniqueConstraint("name", name=op.f("uq_quota_policies_name")),
    )
    limits = op.create_table(
        "quota_policy_limits",
        sa.Column("policy_id", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("limit_value", sa.BigInteger(), nullable=True),
        sa.Column("window_s", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(_RESOURCES, name=op.f("ck_quota_policy_limits_resource_known")),
        sa.CheckConstraint(_LIMIT, name=op.f("ck_quota_policy_limits_limit_not_negative")),
        sa.CheckConstraint(_WINDOW, name=op.f("ck_quota_policy_limits_window_of_gpu_hours")),
        sa.ForeignKeyConstraint(
            ["policy_id"],
            ["quota_policies.id"],
            name=op.f("fk_quota_policy_limits_policy_id_quota_policies"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("policy_id", "resource", name=op.f("pk_quota_policy_limits")),
    )
    op.create_table(
        "quota_policy_targets",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("policy_id", sa.Text(), nullable=False),
        sa.Column("subject_type", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=True),
        sa.Column("group_name", sa.Text(), nullable=True),
        sa.CheckConstraint(_SUBJECTS, name=op.f("ck_quota_policy_targets_subject_type_known")),
        sa.CheckConstraint(
            "group_name IN ('admin', 'owner', 'member', 'personal', 'team')",
            name=op.f("ck_quota_policy_targets_group_name_known"),
        ),
        sa.ForeignKeyConstraint(
            ["policy_id"],
            ["quota_policies.id"],
            name=op.f("fk_quota_policy_targets_policy_id_quota_policies"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_quota_policy_targets_customer_id_customers"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quota_policy_targets")),
        sa.UniqueConstraint(
            "subject_type",
            "customer_id",
            "group_name",
            name=op.f("uq_quota_policy_targets_subject_type_customer_id_group_name"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index(op.f("ix_quota_policy_targets_policy_id"), "quota_policy_targets", ["policy_id"])
    assert policies is not None
    assert limits is not None
    for name, (description, cpus, memory, gpus, storage, environments) in _LEVELS.items():
        op.bulk_insert(policies, [{"id": f"pol-{name}", "name": name, "description": description}])
        amounts = {
            "cpus": cpus,
            "memory_bytes": memory * _GIB,
            "gpus": gpus,
            "storage_bytes": storage * _GIB,
            "environments": environments,
        }
        op.bulk_insert(
            limits,
            [
                {"policy_id": f"pol-{name}", "resource": resource, "limit_value": value}
                for resource, value in amounts.items()
            ],
        )


def _widen_quotas() -> None:
    for name, condition in (("subject_type_known", _SUBJECTS), ("resource_known", _RESOURCES)):
        op.drop_constraint(f"ck_quotas_{name}", "quotas")
        op.create_check_constraint(op.f(f"ck_quotas_{name}"), "quotas", condition)
    for column in ("window_s", "granted_value"):
        op.add_column("quotas", sa.Column(column, sa.BigInteger(), nullable=True))
    for column in ("granted_until", "warned_at", "exceeded_at"):
        op.add_column("quotas", sa.Column(column, sa.DateTime(timezone=True), nullable=True))
    op.add_column("quotas", sa.Column("policy_id", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_quotas_policy_id_quota_policies"),
        "quotas",
        "quota_policies",
        ["policy_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.create_index(
        "ix_quotas_policy", "quotas", ["policy_id"], postgresql_where=sa.text("policy_id IS NOT NULL")
    )
    op.create_check_constraint(op.f("ck_quotas_window_of_gpu_hours"), "quotas", _WINDOW)
    op.create_check_constraint(
        op.f("ck_quotas_granted_until"), "quotas", "(granted_value IS NULL) = (granted_until IS NULL)"
    )


def _create_requests() -> None:
    op.create_table(
        "quota_requests",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("subject_type", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("subject_name", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("wanted_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("limit_before", sa.BigInteger(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="open", nullable=False),
        sa.Column("granted_amount", sa.BigInteger(), nullable=True),
        sa.Column("granted_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(_SUBJECTS, name=op.f("ck_quota_requests_subject_type_known")),
        sa.CheckConstraint(_RESOURCES, name=op.f("ck_quota_requests_resource_known")),
        sa.CheckConstraint(
            "status IN ('open', 'approved', 'refused', 'withdrawn', 'lapsed')",
            name=op.f("ck_quota_requests_status_known"),
        ),
        sa.CheckConstraint(
            "(status IN ('open', 'withdrawn')) = (decided_by IS NULL)",
            name=op.f("ck_quota_requests_decided"),
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_quota_requests_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["requested_by"],
            ["users.id"],
            name=op.f("fk_quota_requests_requested_by_users"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["decided_by"], ["users.id"], name=op.f("fk_quota_requests_decided_by_users"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quota_requests")),
    )
    op.create_index(
        "uq_quota_requests_open",
        "quota_requests",
        ["subject_type", "subject_id", "resource", "requested_by"],
        unique=True,
        postgresql_where=sa.text("status = 'open'"),
    )
    op.create_index("ix_quota_requests_customer", "quota_requests", ["customer_id", "created_at"])
    op.create_index(op.f("ix_quota_requests_requested_by"), "quota_requests", ["requested_by"])
    op.create_index(
        "ix_quota_requests_lapsing",
        "quota_requests",
        ["granted_until"],
        postgresql_where=sa.text("status = 'approved' AND granted_until IS NOT NULL"),
    )


def _image_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("category", sa.Text(), server_default="", nullable=False),
        sa.Column("framework", sa.Text(), nullable=True),
        sa.Column("framework_version", sa.Text(), nullable=True),
        sa.Column("cuda_version", sa.Text(), nullable=True),
        sa.Column("python_version", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("starts_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deprecation_note", sa.Text(), server_default="", nullable=False),
    ]


def _widen_images() -> None:
    op.drop_constraint("ck_images_status_known", "images")
    op.create_check_constraint(
        op.f("ck_images_status_known"),
        "images",
        "status IN ('inactive', 'active', 'deprecated', 'withdrawn')",
    )
    for column in _image_columns():
        op.add_column("images", column)
    op.add_column("images", sa.Column("visibility", sa.Text(), server_default="platform", nullable=False))
    for noun in ("customer", "workspace"):
        op.add_column("images", sa.Column(f"{noun}_id", sa.Text(), nullable=True))
        op.create_foreign_key(
            op.f(f"fk_images_{noun}_id_{noun}s"),
            "images",
            f"{noun}s",
            [f"{noun}_id"],
            ["id"],
            ondelete="CASCADE",
        )
    op.create_check_constraint(
        op.f("ck_images_visibility_known"), "images", "visibility IN ('platform', 'customer', 'workspace')"
    )
    op.create_check_constraint(
        op.f("ck_images_visible_to"),
        "images",
        "(visibility = 'customer') = (customer_id IS NOT NULL)"
        " AND (visibility = 'workspace') = (workspace_id IS NOT NULL)",
    )
    op.create_table(
        "workspace_images",
        sa.Column("workspace_id", sa.Text(), nullable=False),
        sa.Column("image_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["workspaces.id"],
            name=op.f("fk_workspace_images_workspace_id_workspaces"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["image_id"],
            ["images.id"],
            name=op.f("fk_workspace_images_image_id_images"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("workspace_id", "image_id", name=op.f("pk_workspace_images")),
    )
