"""Alembic's entry point. Addressed as ``remotegpu_migrations:`` with the URL in the config's attributes."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text

from remotegpu_server.db.tables import Base

_LOCK = 7_310_446_021
"""Key of the advisory lock under which one process migrates at a time."""


def run() -> None:
    """Upgrade or downgrade in one transaction that only one process at a time can hold.

    The lock belongs to the transaction, so a killed process leaves nothing behind. Whoever waited sees the
    schema that the first one made, and finds nothing to do.
    """
    engine = create_engine(
        context.config.attributes["database_url"],
        connect_args={"options": "-c timezone=UTC", "connect_timeout": 5},
    )
    try:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            connection.execute(text("SET LOCAL lock_timeout = '2s'"))
            context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
            context.run_migrations()
    finally:
        engine.dispose()


run()
