"""Images of hosts that are nodes of Slurm."""

from __future__ import annotations

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _allow("'docker', 'process', 'slurm'")


def downgrade() -> None:
    op.execute("UPDATE images SET runtime = 'process', status = 'withdrawn' WHERE runtime = 'slurm'")
    _allow("'docker', 'process'")


def _allow(listed: str) -> None:
    op.execute("ALTER TABLE images DROP CONSTRAINT ck_images_runtime_known")
    op.execute(
        f"ALTER TABLE images ADD CONSTRAINT ck_images_runtime_known CHECK (runtime IN ({listed})) NOT VALID"
    )
    op.execute("ALTER TABLE images VALIDATE CONSTRAINT ck_images_runtime_known")
