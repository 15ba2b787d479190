"""Environments saved as images, which only the hosts that have them start."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

IMAGE_SAVE_STATUS = {
    "requested": ("saving", "done", "failed"),
    "saving": ("done", "failed"),
    "done": (),
    "failed": (),
}
"""As of this revision; a frozen copy of ``remotegpu_server.db.transitions``."""

_TIME = sa.DateTime(timezone=True)
_LIVE = sa.text("status IN ('requested', 'saving')")
_REFERENCES = {
    "environment_id": ("environments", "CASCADE"),
    "host_id": ("hosts", "CASCADE"),
    "workspace_id": ("workspaces", "CASCADE"),
    "requested_by": ("users", "CASCADE"),
    "base_image_id": ("images", "CASCADE"),
    "image_id": ("images", "SET NULL"),
}


def upgrade() -> None:
    op.add_column("images", sa.Column("local", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    _create_table()
    for name, columns, unique, where in (
        ("uq_image_saves_live_environment", ["environment_id"], True, _LIVE),
        ("uq_image_saves_live_name", ["image_name"], True, _LIVE),
        ("ix_image_saves_live_host", ["host_id"], False, _LIVE),
        ("ix_image_saves_environment", ["environment_id"], False, None),
    ):
        op.create_index(name, "image_saves", columns, unique=unique, postgresql_where=where)
    _guard()


def downgrade() -> None:
    op.drop_table("image_saves")
    op.execute("DROP FUNCTION image_saves_status_transition()")
    # Without the column nothing keeps other hosts from pulling what no registry has.
    op.execute("UPDATE images SET status = 'withdrawn' WHERE local")
    op.drop_column("images", "local")


def _create_table() -> None:
    def text(name: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[str]:
        return sa.Column(name, sa.Text(), server_default=default, nullable=nullable)

    op.create_table(
        "image_saves",
        text("id"),
        text("environment_id"),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        text("host_id"),
        text("workspace_id"),
        text("requested_by"),
        text("image_name"),
        text("display_name"),
        text("description"),
        text("base_image_id"),
        text("image_id", nullable=True),
        text("status", default="requested"),
        text("reason", nullable=True),
        text("message", default=""),
        sa.Column("progress_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "status IN ('requested', 'saving', 'done', 'failed')", name=op.f("ck_image_saves_status_known")
        ),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (status IN ('done', 'failed'))"
            " AND (reason IS NOT NULL) = (status = 'failed')",
            name=op.f("ck_image_saves_finished"),
        ),
        *(
            sa.ForeignKeyConstraint(
                [column],
                [f"{table}.id"],
                name=op.f(f"fk_image_saves_{column}_{table}"),
                ondelete=ondelete,
            )
            for column, (table, ondelete) in _REFERENCES.items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_saves")),
    )


def _guard() -> None:
    edges = ", ".join(
        f"('{source}', '{target}')" for source, targets in IMAGE_SAVE_STATUS.items() for target in targets
    )
    name = "image_saves_status_transition"
    op.execute(
        f"""
        CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.status, NEW.status) IN ({edges}) THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION '% of image_saves: % cannot become %', OLD.id, OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = '{name}';
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER {name} BEFORE UPDATE OF status ON image_saves
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION {name}()
        """
    )
