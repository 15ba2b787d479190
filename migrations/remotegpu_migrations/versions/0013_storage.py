"""Sizes of homes, and homes that their owners delete."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_TIMES = ("measured_at", "measure_asked_at", "removal_requested_at", "removed_at")
_CHECKS = {
    "size_was_measured": "(size_bytes IS NULL) = (measured_at IS NULL)",
    "size_not_negative": "size_bytes >= 0",
    "removal_was_asked_for": "removed_at IS NULL OR removal_requested_at IS NOT NULL",
}
_PLACES = {"uq_volumes_owner_host": "host_id", "uq_volumes_owner_shared": "shared_home"}

_KEEP_ONE = """
    CREATE TEMPORARY TABLE survivors ON COMMIT DROP AS
    SELECT id, first_value(id) OVER (
        PARTITION BY owner_id, host_id, shared_home
        ORDER BY removal_requested_at DESC NULLS FIRST, last_used_at DESC, id
    ) AS kept FROM volumes
"""
"""Of one owner in one place: the home that is there, else the one that was used last."""


def upgrade() -> None:
    op.add_column("volumes", sa.Column("size_bytes", sa.BigInteger(), nullable=True))
    op.add_column("volumes", sa.Column("measuring_host_id", sa.Text(), nullable=True))
    for name in _TIMES:
        op.add_column("volumes", sa.Column(name, _TIME, nullable=True))
    op.create_foreign_key(
        op.f("fk_volumes_measuring_host_id_hosts"),
        "volumes",
        "hosts",
        ["measuring_host_id"],
        ["id"],
        ondelete="SET NULL",
    )
    op.alter_column("volume_removals", "dedication_id", nullable=True)
    # What was wiped after a dedication and never used again is no home any more.
    op.execute(
        "UPDATE volumes v SET removal_requested_at = r.requested_at, removed_at = r.removed_at FROM ("
        " SELECT DISTINCT ON (volume_id) * FROM volume_removals ORDER BY volume_id, requested_at DESC"
        ") r WHERE r.volume_id = v.id AND r.requested_at >= v.last_used_at"
    )
    for name, condition in _CHECKS.items():
        op.create_check_constraint(op.f(f"ck_volumes_{name}"), "volumes", condition)
    _place_indexes(" AND removal_requested_at IS NULL")
    op.create_index(
        "ix_volumes_measuring",
        "volumes",
        ["measuring_host_id"],
        postgresql_where=sa.text("measuring_host_id IS NOT NULL"),
    )
    op.create_index("ix_placements_volume", "placements", ["volume_id", "released_at"])


def downgrade() -> None:
    op.drop_index("ix_placements_volume", table_name="placements")
    op.drop_index("ix_volumes_measuring", table_name="volumes")
    op.execute(_KEEP_ONE)
    for table in ("placements", "placements_history"):
        op.execute(
            f"UPDATE {table} p SET volume_id = s.kept FROM survivors s WHERE s.id = p.volume_id"  # noqa: S608
        )
    op.execute("DELETE FROM volumes v USING survivors s WHERE s.id = v.id AND s.kept <> s.id")
    op.execute("DELETE FROM volume_removals WHERE dedication_id IS NULL")
    op.alter_column("volume_removals", "dedication_id", nullable=False)
    _place_indexes("")
    for name in _CHECKS:
        op.drop_constraint(op.f(f"ck_volumes_{name}"), "volumes", type_="check")
    op.drop_constraint(op.f("fk_volumes_measuring_host_id_hosts"), "volumes", type_="foreignkey")
    for name in ("size_bytes", "measuring_host_id", *_TIMES):
        op.drop_column("volumes", name)


def _place_indexes(unless_removed: str) -> None:
    """One home for each owner and place."""
    for name, place in _PLACES.items():
        op.drop_index(name, table_name="volumes")
        op.create_index(
            name,
            "volumes",
            ["owner_id", place],
            unique=True,
            postgresql_where=sa.text(f"{place} IS NOT NULL{unless_removed}"),
        )
