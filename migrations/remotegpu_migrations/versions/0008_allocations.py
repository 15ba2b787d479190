"""Parts of GPUs: MIG instances, memory shares, wishes for them; and a trail of what changed what is free."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from remotegpu_server.db.tables import Xid8

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_LIVE = sa.text("released_at IS NULL")
_WHOLE = sa.text("released_at IS NULL AND memory_bytes IS NULL")
_TRAILS = {
    "placements": "AFTER INSERT OR UPDATE OR DELETE",
    "allocations": "AFTER INSERT OR UPDATE OR DELETE",
    "gpus": "AFTER INSERT OR UPDATE OR DELETE",
    "dedications": "AFTER INSERT OR UPDATE OR DELETE",
}


def upgrade() -> None:
    _describe_gpus()
    _share_gpus()
    _wish_for_parts()
    _leave_a_trail()


def downgrade() -> None:
    for table in (*_TRAILS, "hosts"):
        op.execute(f"DROP TRIGGER capacity_changed ON {table}")
    op.execute("DROP TRIGGER capacity_removed ON hosts")
    op.execute("DROP FUNCTION capacity_changed()")
    op.drop_table("capacity_changes")
    op.add_column("environments", sa.Column("gpu_model", sa.Text(), nullable=True))
    op.execute("UPDATE environments SET gpu_model = gpu_models[1]")
    op.drop_constraint(op.f("ck_environments_one_gpu_is_shared"), "environments")
    for column in (
        "gpu_models",
        "gpu_memory_bytes",
        "min_gpu_memory_bytes",
        "max_gpu_memory_bytes",
        "mig_profile",
        "host_labels",
    ):
        op.drop_column("environments", column)
    op.execute("DROP TRIGGER allocation_fits ON allocations")
    op.execute("DROP FUNCTION allocation_fits()")
    op.drop_index("ix_allocations_live_gpu", table_name="allocations")
    op.drop_index("uq_allocations_live_gpu", table_name="allocations")
    op.execute("DELETE FROM allocations WHERE memory_bytes IS NOT NULL AND released_at IS NOT NULL")
    op.drop_column("allocations", "memory_bytes")
    op.drop_column("allocations", "gpu_fraction")
    op.create_index("uq_allocations_live_gpu", "allocations", ["gpu_id"], unique=True, postgresql_where=_LIVE)
    for column in ("mig_enabled", "mig_profile", "parent_uuid", "gpu_fraction", "nvlink_group"):
        op.drop_column("gpus", column)


def _describe_gpus() -> None:
    op.add_column(
        "gpus", sa.Column("mig_enabled", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("gpus", sa.Column("mig_profile", sa.Text(), nullable=True))
    op.add_column("gpus", sa.Column("parent_uuid", sa.Text(), nullable=True))
    op.add_column("gpus", sa.Column("gpu_fraction", sa.Double(), server_default=sa.text("1"), nullable=False))
    op.add_column("gpus", sa.Column("nvlink_group", sa.Integer(), nullable=True))
    op.create_check_constraint(
        op.f("ck_gpus_instance_has_parent"), "gpus", "(mig_profile IS NULL) = (parent_uuid IS NULL)"
    )
    op.create_check_constraint(
        op.f("ck_gpus_fraction_of_one"), "gpus", "gpu_fraction > 0 AND gpu_fraction <= 1"
    )


def _share_gpus() -> None:
    op.add_column("allocations", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column(
        "allocations", sa.Column("gpu_fraction", sa.Double(), server_default=sa.text("1"), nullable=False)
    )
    op.create_check_constraint(
        op.f("ck_allocations_share_is_something"), "allocations", "memory_bytes IS NULL OR memory_bytes > 0"
    )
    op.create_check_constraint(
        op.f("ck_allocations_fraction_of_one"), "allocations", "gpu_fraction > 0 AND gpu_fraction <= 1"
    )
    op.drop_index("uq_allocations_live_gpu", table_name="allocations")
    op.create_index(
        "uq_allocations_live_gpu", "allocations", ["gpu_id"], unique=True, postgresql_where=_WHOLE
    )
    op.create_index("ix_allocations_live_gpu", "allocations", ["gpu_id"], postgresql_where=_LIVE)
    # The lock makes takers of one GPU wait for each other, whatever the service forgot.
    op.execute(
        """
        CREATE FUNCTION allocation_fits() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            total bigint;
            divided boolean;
        BEGIN
            SELECT memory_total_bytes, mig_enabled AND mig_profile IS NULL INTO total, divided
            FROM gpus WHERE id = NEW.gpu_id FOR NO KEY UPDATE;
            IF divided THEN
                RAISE EXCEPTION 'GPU % is divided into MIG instances', NEW.gpu_id
                    USING ERRCODE = 'exclusion_violation', CONSTRAINT = 'allocation_fits';
            END IF;
            IF (SELECT coalesce(sum(coalesce(memory_bytes, total)), 0) FROM allocations
                WHERE gpu_id = NEW.gpu_id AND released_at IS NULL AND id <> NEW.id)
               + coalesce(NEW.memory_bytes, total) > total THEN
                RAISE EXCEPTION 'GPU % has no room for this', NEW.gpu_id
                    USING ERRCODE = 'exclusion_violation', CONSTRAINT = 'allocation_fits';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER allocation_fits BEFORE INSERT OR UPDATE OF gpu_id, memory_bytes ON allocations
        FOR EACH ROW WHEN (NEW.released_at IS NULL) EXECUTE FUNCTION allocation_fits()
        """
    )


def _wish_for_parts() -> None:
    op.add_column(
        "environments",
        sa.Column("gpu_models", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
    )
    op.execute("UPDATE environments SET gpu_models = ARRAY[gpu_model] WHERE gpu_model IS NOT NULL")
    op.drop_column("environments", "gpu_model")
    for column in ("gpu_memory_bytes", "min_gpu_memory_bytes", "max_gpu_memory_bytes"):
        op.add_column("environments", sa.Column(column, sa.BigInteger(), nullable=True))
    op.add_column("environments", sa.Column("mig_profile", sa.Text(), nullable=True))
    op.add_column(
        "environments",
        sa.Column(
            "host_labels",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
    )
    op.create_check_constraint(
        op.f("ck_environments_one_gpu_is_shared"),
        "environments",
        "gpu_memory_bytes IS NULL OR (gpus = 1 AND mig_profile IS NULL)",
    )


def _leave_a_trail() -> None:
    op.create_table(
        "capacity_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_capacity_changes")),
    )
    op.create_index("ix_capacity_changes_xid", "capacity_changes", ["xid"])
    op.create_index("ix_capacity_changes_at", "capacity_changes", ["at"])
    op.execute(
        """
        CREATE FUNCTION capacity_changed() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            changed jsonb := to_jsonb(CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END);
        BEGIN
            INSERT INTO capacity_changes (host_id) VALUES (changed ->> TG_ARGV[0]);
            RETURN NULL;
        END $$
        """
    )
    for table, when in _TRAILS.items():
        op.execute(
            f"CREATE TRIGGER capacity_changed {when} ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION capacity_changed('host_id')"
        )
    # A heartbeat that changes nothing leaves no trail.
    op.execute(
        """
        CREATE TRIGGER capacity_changed AFTER UPDATE ON hosts FOR EACH ROW
        WHEN (to_jsonb(OLD) - ARRAY['last_heartbeat_at', 'revision', 'quarantined', 'runtime_detail']
            <> to_jsonb(NEW) - ARRAY['last_heartbeat_at', 'revision', 'quarantined', 'runtime_detail'])
        EXECUTE FUNCTION capacity_changed('id')
        """
    )
    op.execute(
        """
        CREATE TRIGGER capacity_removed AFTER DELETE ON hosts
        FOR EACH ROW EXECUTE FUNCTION capacity_changed('id')
        """
    )
