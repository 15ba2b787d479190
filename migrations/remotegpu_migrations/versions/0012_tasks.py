"""Tasks and attempts. What is held, and workload tokens, belong to an environment or to an attempt."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TASK_STATUS = {
    "pending": ("assigned", "cancelled"),
    "assigned": ("running", "pending", "succeeded", "failed", "cancelled", "timed_out"),
    "running": ("pending", "succeeded", "failed", "cancelled", "timed_out"),
    "succeeded": (),
    "failed": ("pending",),
    "cancelled": ("pending",),
    "timed_out": ("pending",),
}
_ENDS = ("succeeded", "failed", "cancelled", "timed_out", "lost", "preempted")
ATTEMPT_STATUS = {
    "assigned": ("claimed", "cancelled", "lost", "preempted", "failed"),
    "claimed": ("accepted", "cancelled", "lost", "preempted", "failed"),
    "accepted": ("running", *_ENDS),
    "running": _ENDS,
    **dict.fromkeys(_ENDS, ()),
}
"""As of this revision; frozen copies of ``remotegpu_server.db.transitions``."""

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_JSON = postgresql.JSONB(astext_type=sa.Text())
_TEXTS = postgresql.ARRAY(sa.Text())
_HELD = ("placements", "allocations")
_OF_ONE = "(environment_id IS NULL) <> (attempt_id IS NULL)"
_WORKLOAD = "(kind = 'workload') <= (environment_id IS NOT NULL AND user_id IS NOT NULL)"
_WORKLOAD_OF_ONE = f"(kind = 'workload') <= ({_OF_ONE} AND user_id IS NOT NULL)"
_ESTIMATED = "fk_start_estimates_environment_id_environments"
_ALLOCATION = (
    "id",
    "gpu_id",
    "memory_bytes",
    "gpu_fraction",
    "host_id",
    "placement_id",
    "environment_id",
    "user_id",
    "customer_id",
    "workspace_id",
    "allocated_at",
    "released_at",
    "release_proof",
)
_PROOFS = ("'absent', 'reboot', 'admin'", "'absent', 'reboot', 'fence', 'admin'")


def upgrade() -> None:
    _create_task_arrays()
    _create_task_schedules()
    _create_tasks()
    _create_attempts()
    _create_task_dependencies()
    _guard("tasks", TASK_STATUS)
    _guard("attempts", ATTEMPT_STATUS)
    op.execute("DROP VIEW all_allocations")
    for table in _HELD:
        for one in (table, f"{table}_history"):
            op.add_column(one, sa.Column("attempt_id", sa.Text(), nullable=True))
            op.alter_column(one, "environment_id", nullable=True)
        op.create_check_constraint(op.f(f"ck_{table}_of_one_workload"), table, _OF_ONE)
        _foreign_key(table, ondelete="RESTRICT")
        _proofs(table, _PROOFS[1])
    _all_allocations("attempt_id")
    given = sa.text("attempt_id IS NOT NULL")
    op.create_index(
        "uq_placements_attempt", "placements", ["attempt_id"], unique=True, postgresql_where=given
    )
    op.create_index("ix_allocations_attempt", "allocations", ["attempt_id"], postgresql_where=given)
    op.add_column("tokens", sa.Column("attempt_id", sa.Text(), nullable=True))
    _foreign_key("tokens", ondelete="CASCADE")
    op.create_index("ix_tokens_attempt", "tokens", ["attempt_id"], postgresql_where=given)
    _workload_bound(_WORKLOAD_OF_ONE)
    op.drop_constraint(op.f(_ESTIMATED), "start_estimates")
    op.alter_column("start_estimates", "environment_id", new_column_name="ask_id")


def downgrade() -> None:
    # What was held for tasks has no place in the old tables; nothing must hold a GPU that nobody sees.
    op.execute(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT FROM placements WHERE attempt_id IS NOT NULL AND released_at IS NULL) THEN
                RAISE EXCEPTION 'tasks hold resources: let them end before the downgrade';
            END IF;
        END $$
        """
    )
    op.execute("DELETE FROM start_estimates WHERE ask_id NOT IN (SELECT id FROM environments)")
    op.alter_column("start_estimates", "ask_id", new_column_name="environment_id")
    op.create_foreign_key(
        op.f(_ESTIMATED),
        "start_estimates",
        "environments",
        ["environment_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.execute("DELETE FROM tokens WHERE attempt_id IS NOT NULL")
    _workload_bound(_WORKLOAD)
    op.drop_column("tokens", "attempt_id")
    op.execute("DROP VIEW all_allocations")
    for table in reversed(_HELD):
        for one in (table, f"{table}_history"):
            op.execute(f"DELETE FROM {one} WHERE attempt_id IS NOT NULL")  # noqa: S608  names of this file
            op.drop_column(one, "attempt_id")
            op.alter_column(one, "environment_id", nullable=False)
        op.execute(f"UPDATE {table} SET release_proof = 'admin' WHERE release_proof = 'fence'")  # noqa: S608
        _proofs(table, _PROOFS[0])
    _all_allocations()
    for table in ("task_dependencies", "attempts", "tasks", "task_schedules", "task_arrays"):
        op.drop_table(table)
    for table in ("tasks", "attempts"):
        op.execute(f"DROP FUNCTION {table}_status_transition()")


def _foreign_key(table: str, *, ondelete: str) -> None:
    op.create_foreign_key(
        op.f(f"fk_{table}_attempt_id_attempts"), table, "attempts", ["attempt_id"], ["id"], ondelete=ondelete
    )


def _proofs(table: str, known: str) -> None:
    name = op.f(f"ck_{table}_release_proof_known")
    op.drop_constraint(name, table)
    op.create_check_constraint(name, table, f"release_proof IN ({known})")


def _workload_bound(rule: str) -> None:
    name = op.f("ck_tokens_workload_bound")
    op.drop_constraint(name, "tokens")
    op.create_check_constraint(name, "tokens", rule)


def _all_allocations(*more: str) -> None:
    columns = ", ".join((*_ALLOCATION, *more))
    op.execute(
        f"CREATE VIEW all_allocations AS SELECT {columns} FROM allocations"  # noqa: S608  names of this file
        f" UNION ALL SELECT {columns} FROM allocations_history"
    )


def _guard(table: str, moves: dict[str, tuple[str, ...]]) -> None:
    edges = ", ".join(f"('{source}', '{target}')" for source, targets in moves.items() for target in targets)
    name = f"{table}_status_transition"
    op.execute(
        f"""
        CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.status, NEW.status) IN ({edges}) THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION '% of {table}: % cannot become %', OLD.id, OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = '{name}';
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER {name} BEFORE UPDATE OF status ON {table}
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION {name}()
        """
    )


def _create_task_arrays() -> None:
    op.create_table(
        "task_arrays",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("max_parallel", sa.Integer(), nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.CheckConstraint("size > 0 AND max_parallel > 0", name=op.f("ck_task_arrays_sizes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_arrays")),
    )


def _create_task_schedules() -> None:
    op.create_table(
        "task_schedules",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("workspace_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("next_at", _TIME, nullable=True),
        sa.Column("last_at", _TIME, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.CheckConstraint("overlap IN ('skip', 'allow')", name=op.f("ck_task_schedules_overlap_known")),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_task_schedules_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name=op.f("fk_task_schedules_owner_id_users"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "customer_id"],
            ["workspaces.id", "workspaces.customer_id"],
            name=op.f("fk_task_schedules_workspace_id_customer_id_workspaces"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_schedules")),
    )
    op.create_index(
        "ix_task_schedules_due", "task_schedules", ["next_at"], postgresql_where=sa.text("enabled")
    )
    op.create_index("ix_task_schedules_workspace", "task_schedules", ["workspace_id"])
    op.create_index("uq_task_schedules_owner_name", "task_schedules", ["owner_id", "name"], unique=True)


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("workspace_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("image_id", sa.Text(), nullable=False),
        sa.Column("command", _TEXTS, nullable=True),
        sa.Column("script", sa.Text(), nullable=True),
        sa.Column("working_dir", sa.Text(), server_default="", nullable=False),
        sa.Column("env", _JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("labels", _JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("nodes", sa.Integer(), server_default="1", nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_models", _TEXTS, server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("gpu_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("min_gpu_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_gpu_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("mig_profile", sa.Text(), nullable=True),
        sa.Column("host_labels", _JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("cpus", sa.Double(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("stop_requested_at", _TIME, nullable=True),
        sa.Column("generation", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("retries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("progress", sa.Double(), nullable=True),
        sa.Column("progress_message", sa.Text(), server_default="", nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("priority", sa.Integer(), server_default="5", nullable=False),
        sa.Column("preemptible", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("min_run_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("start_at", _TIME, nullable=True),
        sa.Column("reservation_id", sa.Text(), nullable=True),
        sa.Column("preempt_at", _TIME, nullable=True),
        sa.Column("outlook", _JSON, nullable=True),
        sa.Column("stop_at", _TIME, nullable=True),
        sa.Column("max_lifetime_s", sa.Double(), nullable=False),
        sa.Column("deadline_at", _TIME, nullable=True),
        sa.Column("stop_grace_s", sa.Double(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("retry_delay_s", sa.Double(), nullable=False),
        sa.Column("retry_on", _TEXTS, nullable=False),
        sa.Column("array_id", sa.Text(), nullable=True),
        sa.Column("array_index", sa.Integer(), nullable=True),
        sa.Column("schedule_id", sa.Text(), nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("queued_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled', 'timed_out')) = (finished_at IS NOT NULL)",
            name=op.f("ck_tasks_finished"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'assigned', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out')",
            name=op.f("ck_tasks_status_known"),
        ),
        sa.CheckConstraint(
            "(array_id IS NULL) = (array_index IS NULL)", name=op.f("ck_tasks_numbered_in_array")
        ),
        sa.CheckConstraint("(command IS NULL) <> (script IS NULL)", name=op.f("ck_tasks_command_or_script")),
        sa.CheckConstraint(
            "gpu_memory_bytes IS NULL OR (gpus = 1 AND mig_profile IS NULL)",
            name=op.f("ck_tasks_one_gpu_is_shared"),
        ),
        sa.CheckConstraint(
            "gpus >= 0 AND cpus > 0 AND memory_bytes > 0 AND nodes BETWEEN 1 AND 64",
            name=op.f("ck_tasks_sizes"),
        ),
        sa.CheckConstraint("priority BETWEEN 1 AND 9", name=op.f("ck_tasks_priority_known")),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name=op.f("ck_tasks_progress_part")),
        sa.ForeignKeyConstraint(
            ["array_id"], ["task_arrays.id"], name=op.f("fk_tasks_array_id_task_arrays"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_tasks_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name=op.f("fk_tasks_image_id_images"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name=op.f("fk_tasks_owner_id_users"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["reservation_id"],
            ["reservations.id"],
            name=op.f("fk_tasks_reservation_id_reservations"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["schedule_id"],
            ["task_schedules.id"],
            name=op.f("fk_tasks_schedule_id_task_schedules"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "customer_id"],
            ["workspaces.id", "workspaces.customer_id"],
            name=op.f("fk_tasks_workspace_id_customer_id_workspaces"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    op.create_index("ix_tasks_customer_status", "tasks", ["customer_id", "status"])
    op.create_index("ix_tasks_labels", "tasks", ["labels"], postgresql_using="gin")
    op.create_index(
        "ix_tasks_live",
        "tasks",
        ["status"],
        postgresql_where=sa.text("NOT (status IN ('succeeded', 'failed', 'cancelled', 'timed_out'))"),
    )
    op.create_index("ix_tasks_owner", "tasks", ["owner_id", "created_at"])
    op.create_index(
        "ix_tasks_pending", "tasks", ["queued_at"], postgresql_where=sa.text("status = 'pending'")
    )
    op.create_index(
        "ix_tasks_reservation",
        "tasks",
        ["reservation_id"],
        postgresql_where=sa.text("reservation_id IS NOT NULL"),
    )
    op.create_index(
        "ix_tasks_schedule", "tasks", ["schedule_id"], postgresql_where=sa.text("schedule_id IS NOT NULL")
    )
    op.create_index("ix_tasks_workspace", "tasks", ["workspace_id", "created_at"])
    op.create_index("uq_tasks_array_index", "tasks", ["array_id", "array_index"], unique=True)


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.Integer(), server_default="0", nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="assigned", nullable=False),
        sa.Column("reason", sa.Text(), server_default="placed", nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("secret_env", sa.LargeBinary(), nullable=True),
        sa.Column("lease_expires_at", _TIME, nullable=True),
        sa.Column("lost_at", _TIME, nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("peak_gpu_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("log_sequence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("log_truncated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("claimed_at", _TIME, nullable=True),
        sa.Column("accepted_at", _TIME, nullable=True),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "(status IN ('assigned', 'claimed', 'accepted', 'running')) = (finished_at IS NULL)",
            name=op.f("ck_attempts_finished"),
        ),
        sa.CheckConstraint(
            "status IN ('assigned', 'claimed', 'accepted', 'running', 'succeeded', 'failed', 'cancelled',"
            " 'timed_out', 'lost', 'preempted')",
            name=op.f("ck_attempts_status_known"),
        ),
        sa.CheckConstraint(
            "status IN ('assigned', 'lost', 'cancelled', 'preempted', 'failed') OR claimed_at IS NOT NULL",
            name=op.f("ck_attempts_claimed_first"),
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_attempts_host_id_hosts"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_attempts_task_id_tasks"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("task_id", "number", "rank", name=op.f("uq_attempts_task_id_number_rank")),
    )
    op.create_index(
        "ix_attempts_claimable",
        "attempts",
        ["host_id", "created_at"],
        postgresql_where=sa.text("status = 'assigned'"),
    )
    op.create_index(
        "ix_attempts_live_host",
        "attempts",
        ["host_id"],
        postgresql_where=sa.text("status IN ('assigned', 'claimed', 'accepted', 'running')"),
    )
    op.create_index(
        "ix_attempts_lost", "attempts", ["lost_at"], postgresql_where=sa.text("lost_at IS NOT NULL")
    )
    op.create_index(
        "ix_attempts_request",
        "attempts",
        ["host_id", "request_id"],
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_index(
        "uq_attempts_live_task",
        "attempts",
        ["task_id", "rank"],
        unique=True,
        postgresql_where=sa.text("status IN ('assigned', 'claimed', 'accepted', 'running')"),
    )


def _create_task_dependencies() -> None:
    op.create_table(
        "task_dependencies",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("after_id", sa.Text(), nullable=False),
        sa.Column("condition", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "condition IN ('after_ok', 'after_any')", name=op.f("ck_task_dependencies_condition_known")
        ),
        sa.CheckConstraint("task_id <> after_id", name=op.f("ck_task_dependencies_not_itself")),
        sa.ForeignKeyConstraint(
            ["after_id"], ["tasks.id"], name=op.f("fk_task_dependencies_after_id_tasks"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_task_dependencies_task_id_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "after_id", name=op.f("pk_task_dependencies")),
    )
    op.create_index("ix_task_dependencies_after", "task_dependencies", ["after_id"])
