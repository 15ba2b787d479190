"""Hosts in three dimensions, GPUs that stay out until checked, and hosts dedicated to a tenant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

HOST_OPERATIONAL = {
    "pending": ("available", "cordoned", "retired"),
    "available": ("cordoned", "draining", "maintenance", "retired"),
    "cordoned": ("available", "draining", "maintenance", "retired"),
    "draining": ("available", "cordoned", "maintenance", "retired"),
    "maintenance": ("available", "cordoned", "retired"),
    "retired": ("pending",),
}
DEDICATION_STATUS = {
    "scheduled": ("active", "cancelled"),
    "active": ("grace", "cleaning"),
    "grace": ("active", "cleaning"),
    "cleaning": ("ended",),
    "ended": (),
    "cancelled": (),
}
"""As of this revision; frozen copies of ``remotegpu_server.db.transitions``."""

_NOW = sa.text("now()")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _widen_hosts()
    _widen_gpus()
    _create_dedications()
    _guard("hosts", "operational", HOST_OPERATIONAL)
    _guard("dedications", "status", DEDICATION_STATUS)
    _guard_emptiness()


def downgrade() -> None:
    for name in ("host_empty", "hosts_operational_transition"):
        op.execute(f"DROP TRIGGER {name} ON hosts")
        op.execute(f"DROP FUNCTION {name}()")
    for table in ("volume_removals", "dedication_steps", "dedications", "gpu_checks"):
        op.drop_table(table)
    op.execute("DROP FUNCTION dedications_status_transition()")
    for column in ("health_since", "evidence", "accepted_reason"):
        op.drop_column("gpus", column)
    _narrow_hosts()


def _widen_hosts() -> None:
    op.add_column("hosts", sa.Column("hostname", sa.Text(), nullable=True))
    op.add_column("hosts", sa.Column("ip_address", sa.Text(), nullable=True))
    op.add_column("hosts", sa.Column("operational", sa.Text(), server_default="pending", nullable=False))
    op.add_column("hosts", sa.Column("operational_reason", sa.Text(), nullable=True))
    op.add_column("hosts", sa.Column("operational_since", _TIME, server_default=_NOW, nullable=False))
    op.add_column("hosts", sa.Column("drain_deadline", _TIME, nullable=True))
    op.add_column("hosts", sa.Column("drained_at", _TIME, nullable=True))
    op.add_column("hosts", sa.Column("health", sa.Text(), server_default="unknown", nullable=False))
    op.add_column("hosts", sa.Column("health_reason", sa.Text(), nullable=True))
    op.add_column("hosts", sa.Column("duplicate_since", _TIME, nullable=True))
    op.add_column(
        "hosts", sa.Column("disk_full", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.execute(
        """
        UPDATE hosts SET operational = CASE
            WHEN cordoned THEN 'cordoned' WHEN connection = 'never' THEN 'pending' ELSE 'available' END
        """
    )
    # What two hosts claim belongs to neither until an admin says so.
    op.execute(
        """
        UPDATE hosts SET hostname = inventory ->> 'hostname' WHERE inventory ->> 'hostname' IN (
            SELECT inventory ->> 'hostname' FROM hosts GROUP BY 1 HAVING count(*) = 1)
        """
    )
    op.drop_column("hosts", "cordoned")
    _replace_check("connection_known", "connection", "never", "online", "suspect", "unreachable", "lost")
    _check("operational", "pending", "available", "cordoned", "draining", "maintenance", "retired")
    _check("health", "unknown", "healthy", "degraded", "faulty")
    op.create_check_constraint(
        op.f("ck_hosts_deadline_of_drain"), "hosts", "drain_deadline IS NULL OR operational = 'draining'"
    )
    op.create_unique_constraint(op.f("uq_hosts_hostname"), "hosts", ["hostname"])
    op.create_unique_constraint(op.f("uq_hosts_ip_address"), "hosts", ["ip_address"])


def _narrow_hosts() -> None:
    op.add_column(
        "hosts", sa.Column("cordoned", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.execute("UPDATE hosts SET cordoned = operational NOT IN ('pending', 'available')")
    op.execute("UPDATE hosts SET connection = 'unreachable' WHERE connection = 'lost'")
    op.drop_constraint(op.f("ck_hosts_deadline_of_drain"), "hosts")
    for column in (
        "hostname",
        "ip_address",
        "operational",
        "operational_reason",
        "operational_since",
        "drain_deadline",
        "drained_at",
        "health",
        "health_reason",
        "duplicate_since",
        "disk_full",
    ):
        op.drop_column("hosts", column)
    _replace_check("connection_known", "connection", "never", "online", "suspect", "unreachable")


def _replace_check(name: str, column: str, *values: str) -> None:
    op.drop_constraint(op.f(f"ck_hosts_{name}"), "hosts")
    _check(column, *values)


def _check(column: str, *values: str) -> None:
    listed = ", ".join(f"'{value}'" for value in values)
    op.create_check_constraint(op.f(f"ck_hosts_{column}_known"), "hosts", f"{column} IN ({listed})")


def _widen_gpus() -> None:
    op.add_column("gpus", sa.Column("health_since", _TIME, server_default=_NOW, nullable=False))
    op.add_column(
        "gpus",
        sa.Column(
            "evidence",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
    )
    op.add_column("gpus", sa.Column("accepted_reason", sa.Text(), nullable=True))
    op.create_table(
        "gpu_checks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("gpu_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("answered_at", _TIME, nullable=True),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(answered_at IS NULL) = (passed IS NULL)", name=op.f("ck_gpu_checks_answered_with_result")
        ),
        sa.ForeignKeyConstraint(
            ["gpu_id"], ["gpus.id"], name=op.f("fk_gpu_checks_gpu_id_gpus"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_gpu_checks_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gpu_checks")),
    )
    open_ = sa.text("answered_at IS NULL")
    op.create_index("uq_gpu_checks_open", "gpu_checks", ["gpu_id"], unique=True, postgresql_where=open_)
    op.create_index("ix_gpu_checks_open_host", "gpu_checks", ["host_id"], postgresql_where=open_)


def _create_dedications() -> None:
    op.create_table(
        "dedications",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("workspace_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="scheduled", nullable=False),
        sa.Column("starts_at", _TIME, nullable=False),
        sa.Column("ends_at", _TIME, nullable=False),
        sa.Column("remark", sa.Text(), server_default="", nullable=False),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("activated_at", _TIME, nullable=True),
        sa.Column("cleaned_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "status IN ('scheduled', 'active', 'grace', 'cleaning', 'ended', 'cancelled')",
            name=op.f("ck_dedications_status_known"),
        ),
        sa.CheckConstraint("ends_at >= starts_at", name=op.f("ck_dedications_period")),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_dedications_host_id_hosts"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customers.id"],
            name=op.f("fk_dedications_customer_id_customers"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "customer_id"],
            ["workspaces.id", "workspaces.customer_id"],
            name=op.f("fk_dedications_workspace_id_workspaces"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dedications")),
    )
    # By hash, because equality of text in a GiST index needs an extension, and a range of numbers does not.
    key = "hashtextextended(host_id, 0)"
    op.execute(
        f"""
        ALTER TABLE dedications ADD CONSTRAINT ex_dedications_host_period EXCLUDE USING gist (
            int8range({key}, {key}, '[]') WITH &&, tstzrange(starts_at, ends_at) WITH &&
        ) WHERE (status <> 'cancelled')
        """
    )
    op.create_index(
        "uq_dedications_live_host",
        "dedications",
        ["host_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('active', 'grace', 'cleaning')"),
    )
    op.create_index("ix_dedications_customer", "dedications", ["customer_id"])
    op.create_table(
        "dedication_steps",
        sa.Column("dedication_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "name IN ('stop_environments', 'revoke_keys', 'wipe_homes', 'verify_absence')",
            name=op.f("ck_dedication_steps_name_known"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'running', 'done', 'failed')",
            name=op.f("ck_dedication_steps_status_known"),
        ),
        sa.ForeignKeyConstraint(
            ["dedication_id"],
            ["dedications.id"],
            name=op.f("fk_dedication_steps_dedication_id_dedications"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dedication_id", "name", name=op.f("pk_dedication_steps")),
    )
    _create_volume_removals()


def _create_volume_removals() -> None:
    references = (("volume", "volumes"), ("host", "hosts"), ("dedication", "dedications"))
    op.create_table(
        "volume_removals",
        sa.Column("id", sa.Text(), nullable=False),
        *(sa.Column(f"{noun}_id", sa.Text(), nullable=False) for noun, _ in references),
        sa.Column("requested_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("removed_at", _TIME, nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        *(
            sa.ForeignKeyConstraint(
                [f"{noun}_id"],
                [f"{table}.id"],
                name=op.f(f"fk_volume_removals_{noun}_id_{table}"),
                ondelete="CASCADE",
            )
            for noun, table in references
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_removals")),
    )
    open_ = sa.text("removed_at IS NULL")
    op.create_index(
        "uq_volume_removals_open", "volume_removals", ["volume_id"], unique=True, postgresql_where=open_
    )
    op.create_index("ix_volume_removals_open_host", "volume_removals", ["host_id"], postgresql_where=open_)
    op.create_index("ix_volume_removals_dedication", "volume_removals", ["dedication_id"])


def _guard(table: str, column: str, moves: dict[str, tuple[str, ...]]) -> None:
    edges = ", ".join(f"('{source}', '{target}')" for source, targets in moves.items() for target in targets)
    name = f"{table}_{column}_transition"
    op.execute(
        f"""
        CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.{column}, NEW.{column}) IN ({edges}) THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION '% of {table}: % cannot become %', OLD.id, OLD.{column}, NEW.{column}
                USING ERRCODE = 'check_violation', CONSTRAINT = '{name}';
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER {name} BEFORE UPDATE OF {column} ON {table}
        FOR EACH ROW WHEN (OLD.{column} IS DISTINCT FROM NEW.{column}) EXECUTE FUNCTION {name}()
        """
    )


def _guard_emptiness() -> None:
    """Placements lock their host's row first, so none can appear between this look and the commit."""
    op.execute(
        """
        CREATE FUNCTION host_empty() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT 1 FROM placements WHERE host_id = NEW.id AND released_at IS NULL) THEN
                RAISE EXCEPTION 'host % still holds environments', NEW.id
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'host_empty';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER host_empty BEFORE UPDATE OF operational ON hosts
        FOR EACH ROW WHEN (OLD.operational IS DISTINCT FROM NEW.operational
            AND NEW.operational IN ('maintenance', 'retired'))
        EXECUTE FUNCTION host_empty()
        """
    )
