"""Indexes for what the loops look for, so that a million ended tasks slow nothing down."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_LIVE_ATTEMPT = "status IN ('assigned', 'claimed', 'accepted', 'running')"


def upgrade() -> None:
    _index("placements", "environment", "environment_id", where="environment_id IS NOT NULL")
    _index("placements", "released", "released_at", where="released_at IS NOT NULL")
    _index("environments", "wanted", "owner_id", where="desired = 'running'")
    _index("start_estimates", "open", "ask_id", where="started_at IS NULL")
    op.create_index("ix_tokens_ended", "tokens", [sa.text("least(expires_at, revoked_at)")])
    # Last, because its lock keeps everybody from attempts until the commit.
    _live_attempts("finished_at IS NULL")


def downgrade() -> None:
    op.drop_index("ix_tokens_ended", "tokens")
    op.drop_index("ix_start_estimates_open", "start_estimates")
    op.drop_index("ix_environments_wanted", "environments")
    op.drop_index("ix_placements_released", "placements")
    op.drop_index("ix_placements_environment", "placements")
    _live_attempts(_LIVE_ATTEMPT)


def _live_attempts(condition: str) -> None:
    op.drop_index("ix_attempts_live_host", "attempts")
    _index("attempts", "live_host", "host_id", where=condition)


def _index(table: str, name: str, column: str, *, where: str) -> None:
    op.create_index(f"ix_{table}_{name}", table, [column], postgresql_where=sa.text(where))
