"""The database: an external one by URL, else our own. The hub has its own schema in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from remotegpu_server import embedded_postgres
from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import Installation

_NAME = "remotegpu"
_HUB_SCHEMA = "hub"


@dataclass(frozen=True)
class Database:
    """Where server and hub keep their rows."""

    url: str = field(repr=False)
    hub_url: str = field(repr=False)
    embedded: bool
    version: str


def prepare(installation: Installation, environ: Mapping[str, str]) -> Database:
    """Start or reach the database, and make the hub's schema. Raises StepFailed."""
    external = environ.get("REMOTEGPU_DATABASE_URL")
    return _external(external) if external else _embedded(installation)


def _embedded(installation: Installation) -> Database:
    try:
        server = embedded_postgres.ensure_running(installation.database_dir)
        server.ensure_database(_NAME)
        with server.connect(_NAME) as connection:
            version = _make_hub_schema(connection)
    except (embedded_postgres.EmbeddedPostgresError, psycopg.Error) as error:
        raise StepFailed(
            "database",
            str(error),
            "Set REMOTEGPU_DATABASE_URL to use another PostgreSQL, or mend what is said above.",
            log=installation.database_dir / "postgres.log",
        ) from error
    return Database(
        server.url(_NAME), server.url(_NAME, search_path=_HUB_SCHEMA), embedded=True, version=version
    )


def _external(written: str) -> Database:
    try:
        url = make_url(written).set(drivername="postgresql+psycopg")
        libpq = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(libpq, connect_timeout=10, autocommit=True) as connection:
            version = _make_hub_schema(connection)
    except (ArgumentError, psycopg.Error) as error:
        raise StepFailed(
            "database",
            f"REMOTEGPU_DATABASE_URL does not work: {type(error).__name__}: {error}",
            "Give postgresql://USER@HOST/DATABASE of a PostgreSQL 15 or newer; the user must own it.",
        ) from error
    options = f"{url.query.get('options', '')} -csearch_path={_HUB_SCHEMA}".strip()
    return Database(
        url=url.render_as_string(hide_password=False),
        hub_url=url.update_query_dict({"options": options}).render_as_string(hide_password=False),
        embedded=False,
        version=version,
    )


def _make_hub_schema(connection: psycopg.Connection[object]) -> str:
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_HUB_SCHEMA}")
    major = connection.info.server_version // 10000
    if major < embedded_postgres.MINIMUM_MAJOR:
        raise psycopg.NotSupportedError(
            f"it is PostgreSQL {major}; {embedded_postgres.MINIMUM_MAJOR} or newer is needed"
        )
    return f"{major}.{connection.info.server_version % 10000}"
