"""A database of the previous release, full of data, comes through the upgrade with nothing lost."""

from __future__ import annotations

import sqlalchemy as sa

from remotegpu_server.db import schema

PREVIOUS = "0001"
"""The schema of the release before this one."""

_DATA = """
INSERT INTO customers (id, name, display_name) VALUES ('cus-a', 'physics', 'Physics');
INSERT INTO users (id, username, display_name, role, customer_id, password_hash) VALUES
    ('usr-ada', 'ada', 'Ada', 'owner', 'cus-a', 'x'), ('usr-bob', 'bob', 'Bob', 'member', 'cus-a', 'x');
INSERT INTO hosts (id, name, connection, epoch, cordoned, labels)
    VALUES ('host-1', 'one', 'online', 4, true, '{"rack": "a1"}');
INSERT INTO gpus (id, host_id, uuid, index, model, product, memory_total_bytes, simulated, health)
    VALUES ('gpu-1', 'host-1', 'GPU-1', 0, 'A100-80GB', 'A100', 85899345920, true, 'healthy'),
           ('gpu-2', 'host-1', 'GPU-2', 1, 'A100-80GB', 'A100', 85899345920, true, 'unhealthy');
INSERT INTO images (id, name, reference, display_name, description, runtime, status)
    VALUES ('img-1', 'base', 'registry.example.org/base:1', 'Base', '', 'docker', 'active'),
           ('img-2', 'old', 'registry.example.org/old:1', 'Old', '', 'docker', 'withdrawn');
INSERT INTO environments (id, owner_id, customer_id, name, display_name, image_id, gpus, gpu_model, cpus,
        memory_bytes, desired, observed, status, reason, message, generation)
    VALUES ('env-1', 'usr-ada', 'cus-a', 'work', '', 'img-1', 1, 'A100-80GB', 2, 4294967296,
            'running', 'running', 'running', 'ready', 'Ready.', 3),
           ('env-2', 'usr-bob', 'cus-a', 'work', '', 'img-1', 1, NULL, 2, 4294967296,
            'running', 'absent', 'pending', 'no_free_gpu', 'Waits.', 1),
           ('env-3', 'usr-bob', 'cus-a', 'past', '', 'img-2', 0, NULL, 1, 1073741824,
            'deleted', 'absent', 'deleted', 'requested', 'Deleted.', 1);
INSERT INTO volumes (id, owner_id, host_id)
    VALUES ('vol-1', 'usr-ada', 'host-1'), ('vol-2', 'usr-bob', 'host-1');
INSERT INTO placements (id, environment_id, generation, host_id, user_id, customer_id, volume_id, cpus,
        memory_bytes, released_at, release_proof)
    VALUES ('plc-1', 'env-1', 3, 'host-1', 'usr-ada', 'cus-a', 'vol-1', 2, 4294967296, NULL, NULL),
           ('plc-2', 'env-3', 1, 'host-1', 'usr-bob', 'cus-a', 'vol-2', 1, 1073741824, now(), 'absent');
INSERT INTO allocations (id, gpu_id, host_id, placement_id, environment_id, user_id, customer_id)
    VALUES ('alc-1', 'gpu-1', 'host-1', 'plc-1', 'env-1', 'usr-ada', 'cus-a');
INSERT INTO quotas (subject_type, subject_id, resource, limit_value)
    VALUES ('user', 'usr-ada', 'gpus', 2), ('customer', 'cus-a', 'environments', NULL);
INSERT INTO tokens (id, secret_hash, kind, scopes, user_id) VALUES ('tok-1', '', 'user', '{all}', 'usr-ada');
INSERT INTO events (kind, subject_type, subject_id, actor, message)
    VALUES ('environment.created', 'environment', 'env-1', 'ada', 'made');
"""


def _upgraded(url: str) -> sa.Engine:
    schema.migrate(url, revision=PREVIOUS)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(_DATA)
    assert schema.migrate(url)
    return engine


def test_upgrade_gives_everybody_a_personal_workspace_that_holds_their_environments(
    empty_database_url: str,
) -> None:
    engine = _upgraded(empty_database_url)
    with engine.connect() as connection:
        found = connection.execute(
            sa.text(
                "SELECT e.id, w.personal_of, m.role"
                " FROM environments e JOIN workspaces w ON w.id = e.workspace_id"
                " JOIN workspace_members m ON m.workspace_id = w.id AND m.user_id = e.owner_id ORDER BY e.id"
            )
        ).all()
        held = connection.scalars(
            sa.text("SELECT workspace_id FROM allocations UNION SELECT workspace_id FROM placements")
        ).all()
    engine.dispose()
    assert found == [
        ("env-1", "usr-ada", "owner"),
        ("env-2", "usr-bob", "owner"),
        ("env-3", "usr-bob", "owner"),
    ]
    assert len(held) == 2


def test_upgrade_keeps_every_row(empty_database_url: str) -> None:
    engine = _upgraded(empty_database_url)
    with engine.connect() as connection:
        counts = {
            table: connection.scalar(sa.text(f"SELECT count(*) FROM {table}"))  # noqa: S608
            for table in (
                "users",
                "environments",
                "placements",
                "allocations",
                "quotas",
                "gpus",
                "events",
                "tokens",
            )
        }
    engine.dispose()
    assert counts == {
        "users": 2,
        "environments": 3,
        "placements": 2,
        "allocations": 1,
        "quotas": 2,
        "gpus": 2,
        "events": 1,
        "tokens": 1,
    }
