"""Whether the database is at the schema that this server was written for, and moving it there."""

from __future__ import annotations

from sqlalchemy import URL, create_engine, make_url, text

HEAD = "0024"
"""Newest revision in ``remotegpu_migrations`` (a test compares); known here so that Alembic is only imported
when there is something to migrate.
"""


def current_revision(database_url: str | URL) -> str | None:
    """Revision of the database, or None when it is empty."""
    engine = create_engine(_driver(database_url), connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
                return None
            found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return found
    finally:
        engine.dispose()


def migrate(database_url: str | URL, *, revision: str = "head") -> bool:
    """Bring the schema to ``revision``; False when there was nothing to do. Several processes may race."""
    if revision in ("head", HEAD) and current_revision(database_url) == HEAD:
        return False
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "remotegpu_migrations:")
    config.attributes["database_url"] = _driver(database_url)
    command.upgrade(config, revision)
    return True


def _driver(database_url: str | URL) -> URL:
    return make_url(database_url).set(drivername="postgresql+psycopg")
