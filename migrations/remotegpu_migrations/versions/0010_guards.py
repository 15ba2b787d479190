"""An agent session's number never goes back; what admins released is found without reading history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_placements_admin_host",
        "placements",
        ["host_id"],
        postgresql_where=sa.text("release_proof = 'admin'"),
    )
    op.execute(
        """
        CREATE FUNCTION epoch_grows() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'host %: epoch % cannot follow %', OLD.id, NEW.epoch, OLD.epoch
                USING ERRCODE = 'check_violation', CONSTRAINT = 'epoch_grows';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER epoch_grows BEFORE UPDATE OF epoch ON hosts
        FOR EACH ROW WHEN (NEW.epoch < OLD.epoch) EXECUTE FUNCTION epoch_grows()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER epoch_grows ON hosts")
    op.execute("DROP FUNCTION epoch_grows()")
    op.drop_index("ix_placements_admin_host", table_name="placements")
