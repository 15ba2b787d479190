"""Saves of environments as images can be cancelled."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_BEFORE = {"requested": ("saving", "done", "failed"), "saving": ("done", "failed")}
_AFTER = {
    "requested": ("saving", "done", "failed", "cancelled"),
    "saving": ("done", "failed", "cancelled"),
}
"""As of this revision; a frozen copy of ``remotegpu_server.db.transitions``."""


def upgrade() -> None:
    _allow(("requested", "saving", "done", "failed", "cancelled"), over=("done", "failed", "cancelled"))
    _guard(_AFTER)


def downgrade() -> None:
    _guard({"cancelled": ("failed",)})
    op.execute("ALTER TABLE image_saves DROP CONSTRAINT ck_image_saves_finished")
    op.execute(
        "UPDATE image_saves SET status = 'failed', reason = 'environment_stopped' WHERE status = 'cancelled'"
    )
    _allow(("requested", "saving", "done", "failed"), over=("done", "failed"))
    _guard(_BEFORE)


def _allow(known: tuple[str, ...], *, over: tuple[str, ...]) -> None:
    def listed(states: tuple[str, ...]) -> str:
        return ", ".join(f"'{state}'" for state in states)

    for name, condition in (
        ("status_known", f"status IN ({listed(known)})"),
        (
            "finished",
            f"(finished_at IS NOT NULL) = (status IN ({listed(over)}))"
            " AND (reason IS NOT NULL) = (status = 'failed')",
        ),
    ):
        constraint = f"ck_image_saves_{name}"
        op.execute(f"ALTER TABLE image_saves DROP CONSTRAINT IF EXISTS {constraint}")
        op.execute(f"ALTER TABLE image_saves ADD CONSTRAINT {constraint} CHECK ({condition})")


def _guard(moves: dict[str, tuple[str, ...]]) -> None:
    """Replace the function behind the trigger of revision 0011."""
    edges = ", ".join(f"('{source}', '{target}')" for source, targets in moves.items() for target in targets)
    name = "image_saves_status_transition"
    op.execute(
        f"""
        CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.status, NEW.status) IN ({edges}) THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION '% of image_saves: % cannot become %', OLD.id, OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = '{name}';
        END $$
        """
    )
