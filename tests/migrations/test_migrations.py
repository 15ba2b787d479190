"""Migrations make exactly the tables, once, whoever runs them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects.postgresql.base import ischema_names

from remotegpu_server.db import schema
from remotegpu_server.db.tables import Base, Xid8
from remotegpu_server.db.transitions import TRANSITIONS


def _script() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "remotegpu_migrations:")
    return ScriptDirectory.from_config(config)


def test_upgrade_from_empty_equals_tables(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ischema_names, "xid8", Xid8)  # reflection does not know this type by itself
    assert schema.migrate(empty_database_url)

    engine = sa.create_engine(empty_database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        differences = compare_metadata(context, Base.metadata)
    engine.dispose()
    assert differences == []


def test_check_constraints_equal_tables(empty_database_url: str) -> None:
    """Alembic's comparison leaves check constraints out."""
    schema.migrate(empty_database_url)
    declared = {
        str(constraint.name)
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }

    engine = sa.create_engine(empty_database_url)
    with engine.connect() as connection:
        found = set(
            connection.scalars(
                sa.text(
                    "SELECT conname FROM pg_constraint"
                    " WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
                )
            )
        )
    engine.dispose()
    assert found == declared


def test_migrating_twice_does_nothing(empty_database_url: str) -> None:
    assert schema.migrate(empty_database_url)
    assert not schema.migrate(empty_database_url)
    assert schema.current_revision(empty_database_url) == schema.HEAD


def test_known_head_is_the_newest_revision() -> None:
    assert _script().get_current_head() == schema.HEAD


def test_two_processes_migrating_at_once_both_succeed(empty_database_url: str) -> None:
    code = f"from remotegpu_server.db import schema; schema.migrate({empty_database_url!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0, 0], ended
    assert schema.current_revision(empty_database_url) == schema.HEAD


def test_start_at_head_does_not_import_alembic(database_url: str) -> None:
    code = (
        "import sys; import remotegpu_server.app; from remotegpu_server.db import schema;"
        f" assert not schema.migrate({database_url!r}); assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_transitions_of_migration_equal_declaration() -> None:
    frozen = importlib.import_module("remotegpu_migrations.versions.0001_initial").ENVIRONMENT_TRANSITIONS
    assert {source: frozenset(targets) for source, targets in frozen.items()} == TRANSITIONS


def test_downgrade_leaves_nothing(empty_database_url: str) -> None:
    from alembic import command

    schema.migrate(empty_database_url)
    config = Config()
    config.set_main_option("script_location", "remotegpu_migrations:")
    config.attributes["database_url"] = empty_database_url
    command.downgrade(config, "base")

    engine = sa.create_engine(empty_database_url)
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


@pytest.mark.parametrize("source", sorted(TRANSITIONS))
def test_database_refuses_what_the_declaration_refuses(database_url: str, source: str) -> None:
    engine = sa.create_engine(database_url)
    outcomes: dict[str, bool] = {}
    with engine.connect() as connection:
        connection.execute(sa.text("SET session_replication_role = replica"))
        connection.execute(
            sa.text(
                "INSERT INTO environments (id, owner_id, customer_id, workspace_id, name, display_name,"
                " image_id, gpus, cpus, memory_bytes, desired, status, reason, message)"
                " VALUES ('env-1', 'u', 'c', 'w', 'n', '', 'i', 0, 1, 1, 'running', :status, 'requested', '')"
            ),
            {"status": source},
        )
        connection.execute(sa.text("SET session_replication_role = origin"))
        connection.commit()  # foreign keys of a row of the same transaction are checked at every update
        for target in TRANSITIONS:
            savepoint = connection.begin_nested()
            try:
                connection.execute(sa.text("UPDATE environments SET status = :target"), {"target": target})
                outcomes[target] = True
            except sa.exc.IntegrityError:
                outcomes[target] = False
            savepoint.rollback()
        connection.rollback()
    engine.dispose()
    assert outcomes == {target: target in TRANSITIONS[source] or target == source for target in TRANSITIONS}
