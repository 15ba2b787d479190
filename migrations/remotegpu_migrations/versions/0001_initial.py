"""The first schema: all tables, and the triggers that guard what constraints cannot say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from remotegpu_server.db.tables import Xid8

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ENVIRONMENT_TRANSITIONS = {
    "pending": ("starting", "stopped", "deleted"),
    "starting": ("running", "stopping", "failed", "unreachable"),
    "running": ("stopping", "failed", "unreachable", "starting"),
    "unreachable": ("running", "starting", "failed", "stopping"),
    "stopping": ("stopped", "unreachable", "deleted"),
    "stopped": ("pending", "deleted"),
    "failed": ("pending", "deleted"),
    "deleted": (),
}
"""As of this revision; a frozen copy of ``remotegpu_server.db.transitions``."""

EVENT_RETENTION_SETTING = "remotegpu.retention"
"""Set to ``on`` for a transaction (``SET LOCAL``) that sweeps old events."""


def upgrade() -> None:
    _create_tables()
    _guard_transitions()
    _guard_releases()
    _guard_events()


def downgrade() -> None:
    for table, name in (
        ("environments", "environment_transition"),
        ("placements", "release_once"),
        ("allocations", "release_once"),
        ("events", "events_append_only"),
    ):
        op.execute(f"DROP TRIGGER {name} ON {table}")
    for function in ("environment_transition", "release_once", "events_append_only"):
        op.execute(f"DROP FUNCTION {function}()")
    _drop_tables()


def _guard_transitions() -> None:
    edges = ", ".join(
        f"('{source}', '{target}')"
        for source, targets in ENVIRONMENT_TRANSITIONS.items()
        for target in targets
    )
    op.execute(
        f"""
        CREATE FUNCTION environment_transition() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.status, NEW.status) IN ({edges}) THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION 'environment %: % cannot become %', OLD.id, OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'environment_transition';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER environment_transition BEFORE UPDATE OF status ON environments
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION environment_transition()
        """
    )


def _guard_releases() -> None:
    op.execute(
        """
        CREATE FUNCTION release_once() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% % was released already', TG_TABLE_NAME, OLD.id
                USING ERRCODE = 'check_violation', CONSTRAINT = 'release_once';
        END $$
        """
    )
    for table in ("placements", "allocations"):
        op.execute(
            f"""
            CREATE TRIGGER release_once BEFORE UPDATE ON {table}
            FOR EACH ROW WHEN (OLD.released_at IS NOT NULL AND
                (OLD.released_at, OLD.release_proof) IS DISTINCT FROM (NEW.released_at, NEW.release_proof))
            EXECUTE FUNCTION release_once()
            """
        )


def _guard_events() -> None:
    op.execute(
        f"""
        CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'DELETE' AND current_setting('{EVENT_RETENTION_SETTING}', true) = 'on' THEN
                RETURN NULL;
            END IF;
            RAISE EXCEPTION 'events are append-only'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'events_append_only';
        END $$
        """
    )
    # Once per statement: the sweep deletes thousands of rows.
    op.execute(
        """
        CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
        FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()
        """
    )


def _create_tables() -> None:
    op.create_table(
        "customers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('active', 'suspended')", name=op.f("ck_customers_status_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_customers")),
        sa.UniqueConstraint("name", name=op.f("uq_customers_name")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject_type", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column(
            "data",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_at", "events", ["at"], unique=False)
    op.create_index("ix_events_position", "events", ["xid", "id"], unique=False)
    op.create_index("ix_events_subject", "events", ["subject_type", "subject_id", "id"], unique=False)
    op.create_table(
        "hosts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "labels",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("cordoned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("connection", sa.Text(), server_default="never", nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("machine_id", sa.Text(), nullable=True),
        sa.Column("boot_id", sa.Text(), nullable=True),
        sa.Column("agent_version", sa.Text(), nullable=True),
        sa.Column("inventory", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("cpus", sa.Integer(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("runtime", sa.Text(), nullable=True),
        sa.Column("runtime_healthy", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("runtime_detail", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("shared_home", sa.Text(), nullable=True),
        sa.Column(
            "quarantined", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False
        ),
        sa.Column("last_heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "connection IN ('never', 'online', 'suspect', 'unreachable')",
            name=op.f("ck_hosts_connection_known"),
        ),
        sa.CheckConstraint("epoch >= 0", name=op.f("ck_hosts_epoch_grows")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hosts")),
        sa.UniqueConstraint("name", name=op.f("uq_hosts_name")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "images",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("command", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("runtime IN ('docker', 'process')", name=op.f("ck_images_runtime_known")),
        sa.CheckConstraint("status IN ('active', 'withdrawn')", name=op.f("ck_images_status_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        sa.UniqueConstraint("name", name=op.f("uq_images_name")),
    )
    op.create_table(
        "leadership",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leadership")),
    )
    op.create_table(
        "login_failures",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_failures")),
    )
    op.create_index("ix_login_failures_subject_at", "login_failures", ["subject", "at"], unique=False)
    op.create_table(
        "quotas",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("subject_type", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("limit_value", sa.BigInteger(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "resource IN ('gpus', 'environments', 'cpus', 'memory_bytes')",
            name=op.f("ck_quotas_resource_known"),
        ),
        sa.CheckConstraint("subject_type IN ('user', 'customer')", name=op.f("ck_quotas_subject_type_known")),
        sa.CheckConstraint(
            "limit_value IS NULL OR limit_value >= 0", name=op.f("ck_quotas_limit_not_negative")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quotas")),
        sa.UniqueConstraint(
            "subject_type", "subject_id", "resource", name=op.f("uq_quotas_subject_type_subject_id_resource")
        ),
    )
    op.create_table(
        "gpus",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("uuid", sa.Text(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("product", sa.Text(), nullable=False),
        sa.Column("memory_total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pci_bus_id", sa.Text(), nullable=True),
        sa.Column("numa_node", sa.Integer(), nullable=True),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("health", sa.Text(), server_default="healthy", nullable=False),
        sa.Column("health_reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "health IN ('healthy', 'unhealthy', 'missing')", name=op.f("ck_gpus_health_known")
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_gpus_host_id_hosts"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gpus")),
        sa.UniqueConstraint("id", "host_id", name=op.f("uq_gpus_id_host_id")),
        sa.UniqueConstraint("uuid", name=op.f("uq_gpus_uuid")),
    )
    op.create_index("ix_gpus_host", "gpus", ["host_id"], unique=False)
    op.create_table(
        "host_samples",
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("host", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("gpus", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("workloads", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_host_samples_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("host_id", "at", name=op.f("pk_host_samples")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), server_default="member", nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('admin', 'owner', 'member')", name=op.f("ck_users_role_known")),
        sa.CheckConstraint("status IN ('active', 'suspended')", name=op.f("ck_users_status_known")),
        sa.CheckConstraint("username = lower(username)", name=op.f("ck_users_username_lower")),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_users_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("username", name=op.f("uq_users_username")),
    )
    op.create_index(op.f("ix_users_customer_id"), "users", ["customer_id"], unique=False)
    op.create_table(
        "environments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("image_id", sa.Text(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_model", sa.Text(), nullable=True),
        sa.Column("cpus", sa.Double(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column(
            "env",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("secret_env", sa.LargeBinary(), nullable=True),
        sa.Column("desired", sa.Text(), nullable=False),
        sa.Column("observed", sa.Text(), server_default="absent", nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("progress_percent", sa.Integer(), nullable=True),
        sa.Column("generation", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "desired IN ('running', 'stopped', 'deleted')", name=op.f("ck_environments_desired_known")
        ),
        sa.CheckConstraint(
            "observed IN ('absent', 'pulling', 'creating', 'starting', 'running', 'stopping', 'exited', 'failed', 'unknown')",  # noqa: E501
            name=op.f("ck_environments_observed_known"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'starting', 'running', 'stopping', 'stopped', 'failed', 'unreachable', 'deleted')",  # noqa: E501
            name=op.f("ck_environments_status_known"),
        ),
        sa.CheckConstraint("gpus >= 0 AND cpus > 0 AND memory_bytes > 0", name=op.f("ck_environments_sizes")),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_environments_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name=op.f("fk_environments_image_id_images"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name=op.f("fk_environments_owner_id_users"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_environments")),
    )
    op.create_index("ix_environments_customer", "environments", ["customer_id"], unique=False)
    op.create_index(op.f("ix_environments_owner_id"), "environments", ["owner_id"], unique=False)
    op.create_index(
        "ix_environments_pending",
        "environments",
        ["queued_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "uq_environments_owner_name",
        "environments",
        ["owner_id", "name"],
        unique=True,
        postgresql_where=sa.text("status <> 'deleted'"),
    )
    op.create_table(
        "volumes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=True),
        sa.Column("shared_home", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "last_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "(host_id IS NULL) <> (shared_home IS NULL)", name=op.f("ck_volumes_on_host_or_shared")
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_volumes_host_id_hosts"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name=op.f("fk_volumes_owner_id_users"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volumes")),
    )
    op.create_index(op.f("ix_volumes_owner_id"), "volumes", ["owner_id"], unique=False)
    op.create_index(
        "uq_volumes_owner_host",
        "volumes",
        ["owner_id", "host_id"],
        unique=True,
        postgresql_where=sa.text("host_id IS NOT NULL"),
    )
    op.create_index(
        "uq_volumes_owner_shared",
        "volumes",
        ["owner_id", "shared_home"],
        unique=True,
        postgresql_where=sa.text("shared_home IS NOT NULL"),
    )
    op.create_table(
        "log_requests",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.Column("tail_lines", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("truncated", sa.Boolean(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environments.id"],
            name=op.f("fk_log_requests_environment_id_environments"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_log_requests_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_requests")),
    )
    op.create_index(
        "ix_log_requests_open",
        "log_requests",
        ["host_id"],
        unique=False,
        postgresql_where=sa.text("answered_at IS NULL"),
    )
    op.create_table(
        "placements",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("volume_id", sa.Text(), nullable=False),
        sa.Column("cpus", sa.Double(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("release_proof", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "release_proof IN ('absent', 'reboot', 'admin')", name=op.f("ck_placements_release_proof_known")
        ),
        sa.CheckConstraint(
            "(released_at IS NULL) = (release_proof IS NULL)", name=op.f("ck_placements_released_with_proof")
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_placements_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environments.id"],
            name=op.f("fk_placements_environment_id_environments"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_placements_host_id_hosts"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_placements_user_id_users"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["volume_id"], ["volumes.id"], name=op.f("fk_placements_volume_id_volumes"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_placements")),
        sa.UniqueConstraint("id", "host_id", name=op.f("uq_placements_id_host_id")),
    )
    op.create_index(
        "ix_placements_live_customer",
        "placements",
        ["customer_id"],
        unique=False,
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.create_index(
        "ix_placements_live_host",
        "placements",
        ["host_id"],
        unique=False,
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.create_index(
        "ix_placements_live_user",
        "placements",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.create_index(
        "uq_placements_live_environment",
        "placements",
        ["environment_id"],
        unique=True,
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("host_id", sa.Text(), nullable=True),
        sa.Column("environment_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(kind = 'user') <= (user_id IS NOT NULL)", name=op.f("ck_tokens_user_owned")),
        sa.CheckConstraint(
            "(kind = 'workload') <= (environment_id IS NOT NULL AND user_id IS NOT NULL)",
            name=op.f("ck_tokens_workload_bound"),
        ),
        sa.CheckConstraint(
            "(kind IN ('agent', 'enrollment')) <= (host_id IS NOT NULL)", name=op.f("ck_tokens_host_bound")
        ),
        sa.CheckConstraint(
            "kind IN ('user', 'service', 'agent', 'workload', 'enrollment')",
            name=op.f("ck_tokens_kind_known"),
        ),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environments.id"],
            name=op.f("fk_tokens_environment_id_environments"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_tokens_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_tokens_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
    )
    op.create_index(
        "ix_tokens_environment",
        "tokens",
        ["environment_id"],
        unique=False,
        postgresql_where=sa.text("environment_id IS NOT NULL"),
    )
    op.create_index(op.f("ix_tokens_host_id"), "tokens", ["host_id"], unique=False)
    op.create_index(
        "ix_tokens_live_user",
        "tokens",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "allocations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("gpu_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("placement_id", sa.Text(), nullable=False),
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column(
            "allocated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("release_proof", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "release_proof IN ('absent', 'reboot', 'admin')", name=op.f("ck_allocations_release_proof_known")
        ),
        sa.CheckConstraint(
            "(released_at IS NULL) = (release_proof IS NULL)", name=op.f("ck_allocations_released_with_proof")
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_allocations_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environments.id"],
            name=op.f("fk_allocations_environment_id_environments"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["gpu_id", "host_id"],
            ["gpus.id", "gpus.host_id"],
            name=op.f("fk_allocations_gpu_id_host_id_gpus"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["placement_id", "host_id"],
            ["placements.id", "placements.host_id"],
            name=op.f("fk_allocations_placement_id_host_id_placements"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_allocations_user_id_users"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_allocations")),
    )
    op.create_index(op.f("ix_allocations_environment_id"), "allocations", ["environment_id"], unique=False)
    op.create_index(
        "ix_allocations_live_user",
        "allocations",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.create_index("ix_allocations_placement", "allocations", ["placement_id"], unique=False)
    op.create_index(
        "uq_allocations_live_gpu",
        "allocations",
        ["gpu_id"],
        unique=True,
        postgresql_where=sa.text("released_at IS NULL"),
    )


def _drop_tables() -> None:
    op.drop_index(
        "uq_allocations_live_gpu", table_name="allocations", postgresql_where=sa.text("released_at IS NULL")
    )
    op.drop_index("ix_allocations_placement", table_name="allocations")
    op.drop_index(
        "ix_allocations_live_user", table_name="allocations", postgresql_where=sa.text("released_at IS NULL")
    )
    op.drop_index(op.f("ix_allocations_environment_id"), table_name="allocations")
    op.drop_table("allocations")
    op.drop_index("ix_tokens_live_user", table_name="tokens", postgresql_where=sa.text("revoked_at IS NULL"))
    op.drop_index(op.f("ix_tokens_host_id"), table_name="tokens")
    op.drop_index(
        "ix_tokens_environment", table_name="tokens", postgresql_where=sa.text("environment_id IS NOT NULL")
    )
    op.drop_table("tokens")
    op.drop_index(
        "uq_placements_live_environment",
        table_name="placements",
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.drop_index(
        "ix_placements_live_user", table_name="placements", postgresql_where=sa.text("released_at IS NULL")
    )
    op.drop_index(
        "ix_placements_live_host", table_name="placements", postgresql_where=sa.text("released_at IS NULL")
    )
    op.drop_index(
        "ix_placements_live_customer",
        table_name="placements",
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.drop_table("placements")
    op.drop_index(
        "ix_log_requests_open", table_name="log_requests", postgresql_where=sa.text("answered_at IS NULL")
    )
    op.drop_table("log_requests")
    op.drop_index(
        "uq_volumes_owner_shared", table_name="volumes", postgresql_where=sa.text("shared_home IS NOT NULL")
    )
    op.drop_index(
        "uq_volumes_owner_host", table_name="volumes", postgresql_where=sa.text("host_id IS NOT NULL")
    )
    op.drop_index(op.f("ix_volumes_owner_id"), table_name="volumes")
    op.drop_table("volumes")
    op.drop_index(
        "uq_environments_owner_name",
        table_name="environments",
        postgresql_where=sa.text("status <> 'deleted'"),
    )
    op.drop_index(
        "ix_environments_pending", table_name="environments", postgresql_where=sa.text("status = 'pending'")
    )
    op.drop_index(op.f("ix_environments_owner_id"), table_name="environments")
    op.drop_index("ix_environments_customer", table_name="environments")
    op.drop_table("environments")
    op.drop_index(op.f("ix_users_customer_id"), table_name="users")
    op.drop_table("users")
    op.drop_table("host_samples")
    op.drop_index("ix_gpus_host", table_name="gpus")
    op.drop_table("gpus")
    op.drop_table("quotas")
    op.drop_index("ix_login_failures_subject_at", table_name="login_failures")
    op.drop_table("login_failures")
    op.drop_table("leadership")
    op.drop_table("images")
    op.drop_table("idempotency_keys")
    op.drop_table("hosts")
    op.drop_index("ix_events_subject", table_name="events")
    op.drop_index("ix_events_position", table_name="events")
    op.drop_index("ix_events_at", table_name="events")
    op.drop_table("events")
    op.drop_table("customers")
