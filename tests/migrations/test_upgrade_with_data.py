"""A database of the previous release, full of data, comes through the upgrade with nothing lost.

What each migration makes of old rows is asserted row by row, and a server of today works on the result: old
tokens sign in, an old agent's session finds its workload, and what ran can be stopped with proof.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hollow_agent import HollowAgent, gpu

import remotegpu
import remotegpu_migrations
from remotegpu_server.db import schema
from remotegpu_server.db.engine import connect
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import LiveServer

PREVIOUS = "0001"
"""The schema of the release before this one."""
_ROWS_STAY = {"0010", "0022"}
"""Revisions that add only indexes and guards."""
_USER_SECRET = f"rgu_adasnotebook_{'a' * 43}"
_ADMIN_SECRET = f"rgu_adminsbrowse_{'c' * 43}"
_AGENT_SECRET = f"rga_agentofhost1_{'b' * 43}"
_ADMIN = {"Authorization": f"Bearer {_ADMIN_SECRET}"}
"""Random when they were made; the database keeps their hashes."""

_DATA = """
INSERT INTO customers (id, name, display_name) VALUES ('cus-a', 'physics', 'Physics');
INSERT INTO users (id, username, display_name, role, customer_id, password_hash, email, status, created_at)
    VALUES ('usr-ada', 'ada', 'Ada', 'owner', 'cus-a', 'x', 'lab@example.org', 'active', '2026-01-01Z'),
           ('usr-bob', 'bob', 'Bob', 'member', 'cus-a', 'x', 'LAB@example.org', 'active', '2026-01-02Z'),
           ('usr-eve', 'eve', 'Eve', 'member', 'cus-a', 'x', NULL, 'suspended', '2026-01-03Z'),
           ('usr-root', 'root', 'Root', 'admin', 'cus-a', 'x', NULL, 'active', '2026-01-04Z');
INSERT INTO hosts (id, name, connection, epoch, cordoned, labels, boot_id, machine_id, cpus, memory_bytes,
        runtime, runtime_healthy, registered_at, last_heartbeat_at, inventory)
    VALUES ('host-1', 'one', 'online', 4, true, '{"rack": "a1"}', 'boot-1', 'machine-1', 32, 137438953472,
            'docker', true, now(), now(), '{"hostname": "one.example.org"}'),
           ('host-2', 'two', 'unreachable', 1, false, '{}', 'boot-1', 'machine-2', 8, 137438953472,
            'docker', true, now(), now(), '{"hostname": "twin"}'),
           ('host-3', 'three', 'suspect', 1, false, '{}', 'boot-1', 'machine-3', 8, 137438953472,
            'docker', true, now(), now(), '{"hostname": "twin"}');
INSERT INTO hosts (id, name, cordoned)
    VALUES ('host-4', 'new', false), ('host-5', 'new-cordoned', true);
INSERT INTO gpus (id, host_id, uuid, index, model, product, memory_total_bytes, simulated, health)
    VALUES ('gpu-1', 'host-1', 'GPU-1', 0, 'A100-80GB', 'A100', 85899345920, true, 'healthy'),
           ('gpu-2', 'host-1', 'GPU-2', 1, 'A100-80GB', 'A100', 85899345920, true, 'unhealthy');
INSERT INTO images (id, name, reference, display_name, description, runtime, status)
    VALUES ('img-1', 'base', 'registry.example.org/base:1', 'Base', '', 'docker', 'active'),
           ('img-2', 'old', 'registry.example.org/old:1', 'Old', '', 'docker', 'withdrawn');
INSERT INTO environments (id, owner_id, customer_id, name, display_name, image_id, gpus, gpu_model, cpus,
        memory_bytes, desired, observed, status, reason, message, generation, stopped_at)
    VALUES ('env-1', 'usr-ada', 'cus-a', 'work', '', 'img-1', 1, 'A100-80GB', 2, 4294967296,
            'running', 'running', 'running', 'ready', 'Ready.', 3, NULL),
           ('env-2', 'usr-bob', 'cus-a', 'work', '', 'img-1', 1, NULL, 2, 4294967296,
            'running', 'absent', 'pending', 'no_free_gpu', 'Waits.', 1, NULL),
           ('env-3', 'usr-bob', 'cus-a', 'past', '', 'img-2', 0, NULL, 1, 1073741824,
            'deleted', 'absent', 'deleted', 'requested', 'Deleted.', 1, now()),
           ('env-4', 'usr-eve', 'cus-a', 'idle', '', 'img-1', 2, 'T4', 1, 1073741824,
            'stopped', 'absent', 'stopped', 'requested', 'Stopped.', 2, now());
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
INSERT INTO tokens (id, secret_hash, kind, scopes, user_id, host_id)
    VALUES ('tok-adasnotebook', decode('<user>', 'hex'), 'user', '{all}', 'usr-ada', NULL),
           ('tok-agentofhost1', decode('<agent>', 'hex'), 'agent', '{agent}', NULL, 'host-1'),
           ('tok-adminsbrowse', decode('<admin>', 'hex'), 'user', '{all}', 'usr-root', NULL);
INSERT INTO events (kind, subject_type, subject_id, actor, message)
    VALUES ('environment.created', 'environment', 'env-1', 'ada', 'made');
"""


def _old_data() -> str:
    data = _DATA
    for name, secret in (("user", _USER_SECRET), ("admin", _ADMIN_SECRET), ("agent", _AGENT_SECRET)):
        data = data.replace(f"<{name}>", hashlib.sha256(secret.encode()).hexdigest())
    return data


def _upgrade(url: str) -> sa.Engine:
    schema.migrate(url, revision=PREVIOUS)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(_old_data())
    assert schema.migrate(url)
    return engine


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "remotegpu_migrations:")
    config.attributes["database_url"] = url
    return config


@pytest.fixture(scope="module")
def upgraded(cluster: EmbeddedPostgres) -> Iterator[sa.Engine]:
    """For tests that only look."""
    cluster.ensure_database("upgraded")
    engine = _upgrade(cluster.url("upgraded"))
    yield engine
    engine.dispose()
    cluster.drop_database("upgraded")


def _rows(engine: sa.Engine, statement: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(statement))]


def test_upgrade_keeps_every_row(upgraded: sa.Engine) -> None:
    counts = {
        "users": 4, "customers": 1, "hosts": 5, "gpus": 2, "images": 2, "environments": 4, "placements": 2,
        "allocations": 1, "volumes": 2, "quotas": 2, "events": 1, "tokens": 3,
    }  # fmt: skip
    found = {table: _rows(upgraded, f"SELECT count(*) FROM {table}")[0][0] for table in counts}  # noqa: S608
    assert found == counts


def test_upgrade_0002_gives_everybody_a_personal_workspace_that_holds_their_environments(
    upgraded: sa.Engine,
) -> None:
    found = _rows(
        upgraded,
        "SELECT e.id, w.personal_of, w.name, w.kind, w.status, m.role, m.status, w.customer_id"
        " FROM environments e JOIN workspaces w ON w.id = e.workspace_id"
        " JOIN workspace_members m ON m.workspace_id = w.id AND m.user_id = e.owner_id ORDER BY e.id",
    )
    assert found == [
        (f"env-{number}", f"usr-{name}", name, "personal", "active", "owner", "active", "cus-a")
        for number, name in enumerate(("ada", "bob", "bob", "eve"), start=1)
    ]
    assert _rows(upgraded, "SELECT count(*) FROM workspaces") == [(4,)], "also who has none"
    held = "SELECT p.id, w.personal_of FROM {0} p JOIN workspaces w ON w.id = p.workspace_id ORDER BY 1"
    assert _rows(upgraded, held.format("placements")) == [("plc-1", "usr-ada"), ("plc-2", "usr-bob")]
    assert _rows(upgraded, held.format("allocations")) == [("alc-1", "usr-ada")]
    assert _rows(upgraded, "SELECT workspace_id FROM events") == [(None,)], "it was in none"


def test_upgrade_0003_keeps_the_oldest_of_equal_addresses_and_opens_no_account(upgraded: sa.Engine) -> None:
    assert _rows(
        upgraded,
        "SELECT username, email, status, full_name, phone, avatar_url, password_hash,"
        " password_change_required, oidc_issuer, oidc_subject, stop_environments_at FROM users ORDER BY id",
    ) == [
        (name, email, status, "", None, None, "x", False, None, None, None)
        for name, email, status in (
            ("ada", "lab@example.org", "active"), ("bob", None, "active"), ("eve", None, "suspended"),
            ("root", None, "active"))
    ]  # fmt: skip
    assert _rows(upgraded, "SELECT company, code, status, stop_environments_at FROM customers") == [
        ("", None, "active", None)
    ]


def test_upgrade_0004_says_what_hosts_and_gpus_were_in_three_dimensions(upgraded: sa.Engine) -> None:
    assert _rows(
        upgraded, "SELECT name, operational, connection, health, hostname, epoch FROM hosts ORDER BY id"
    ) == [
        ("one", "cordoned", "online", "unknown", "one.example.org", 4),
        ("two", "available", "unreachable", "unknown", None, 1),
        ("three", "available", "suspect", "unknown", None, 1),
        ("new", "pending", "never", "unknown", None, 0),
        ("new-cordoned", "cordoned", "never", "unknown", None, 0),
    ], "a name that two hosts claim is neither's"
    assert _rows(
        upgraded,
        "SELECT operational_reason, drain_deadline, drained_at, health_reason, ip_address, duplicate_since,"
        " disk_full FROM hosts GROUP BY 1, 2, 3, 4, 5, 6, 7",
    ) == [(None, None, None, None, None, None, False)]
    assert _rows(
        upgraded,
        "SELECT id, health, health_since IS NOT NULL, evidence, accepted_reason FROM gpus ORDER BY id",
    ) == [("gpu-1", "healthy", True, {}, None), ("gpu-2", "unhealthy", True, {}, None)]


def test_upgrade_0005_keeps_limits_as_they_were_and_images_for_everybody(upgraded: sa.Engine) -> None:
    assert _rows(
        upgraded,
        "SELECT subject_type, subject_id, resource, limit_value, window_s, policy_id, granted_value,"
        " granted_until, warned_at, exceeded_at FROM quotas ORDER BY id",
    ) == [
        ("user", "usr-ada", "gpus", 2, None, None, None, None, None, None),
        ("customer", "cus-a", "environments", None, None, None, None, None, None, None),
    ]
    assert _rows(
        upgraded,
        "SELECT name, status, visibility, customer_id, workspace_id, category, framework, starts_until,"
        " deprecation_note FROM images ORDER BY id",
    ) == [
        (name, status, "platform", None, None, "", None, None, "")
        for name, status in (("base", "active"), ("old", "withdrawn"))
    ]
    assert _rows(upgraded, "SELECT queued_at FROM placements GROUP BY 1") == [(None,)], "nobody knows"
    assert {name for (name,) in _rows(upgraded, "SELECT name FROM quota_policies")} == {
        "free",
        "basic",
        "pro",
    }


def test_upgrade_0006_lets_those_who_wait_keep_their_place_and_preempts_nobody(upgraded: sa.Engine) -> None:
    assert _rows(
        upgraded,
        "SELECT priority, preemptible, min_run_s, start_at, reservation_id, preempt_at, outlook"
        " FROM environments GROUP BY 1, 2, 3, 4, 5, 6, 7",
    ) == [(5, False, 0.0, None, None, None, None)]
    assert _rows(upgraded, "SELECT id FROM environments WHERE status = 'pending'") == [("env-2",)]


def test_upgrade_0007_takes_environments_for_the_hubs_and_gives_none_a_deadline(upgraded: sa.Engine) -> None:
    assert _rows(upgraded, "SELECT id, hub_managed FROM environments ORDER BY id") == [
        ("env-1", True), ("env-2", True), ("env-3", False), ("env-4", True)
    ]  # fmt: skip
    assert _rows(
        upgraded,
        "SELECT endpoints, stop_at, max_lifetime_s, deadline_at, deadline_warned_s, idle_policy, idle_since,"
        " idle_stage, idle_stop_at FROM environments GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ) == [({}, *[None] * 8)]
    assert _rows(upgraded, "SELECT keys_digest FROM hosts GROUP BY 1") == [("",)]


def test_upgrade_0008_turns_the_model_into_a_wish_and_allocations_into_whole_gpus(
    upgraded: sa.Engine,
) -> None:
    assert _rows(
        upgraded,
        "SELECT id, gpu_models, gpu_memory_bytes, min_gpu_memory_bytes, max_gpu_memory_bytes, mig_profile,"
        " host_labels FROM environments ORDER BY id",
    ) == [
        (f"env-{number}", models, None, None, None, None, {})
        for number, models in enumerate((["A100-80GB"], [], [], ["T4"]), start=1)
    ]
    assert _rows(upgraded, "SELECT gpu_id, memory_bytes, gpu_fraction, released_at FROM allocations") == [
        ("gpu-1", None, 1.0, None)
    ]
    assert _rows(
        upgraded,
        "SELECT mig_enabled, mig_profile, parent_uuid, gpu_fraction, nvlink_group FROM gpus"
        " GROUP BY 1, 2, 3, 4, 5",
    ) == [(False, None, None, 1.0, None)]


def test_upgrade_0009_moves_nothing_to_the_history_and_shows_all_allocations(upgraded: sa.Engine) -> None:
    for table in ("environments", "placements", "allocations"):
        assert _rows(upgraded, f"SELECT count(*) FROM {table}_history") == [(0,)]  # noqa: S608
    assert _rows(upgraded, "SELECT id FROM all_allocations") == [("alc-1",)]


def test_upgrade_0011_takes_every_image_for_one_of_a_registry(upgraded: sa.Engine) -> None:
    assert _rows(upgraded, "SELECT DISTINCT local FROM images WHERE id LIKE 'img-_'") == [(False,)]
    assert _rows(upgraded, "SELECT count(*) FROM image_saves") == [(0,)]


def test_upgrade_0012_leaves_what_is_held_with_its_environment(upgraded: sa.Engine) -> None:
    found = _rows(upgraded, "SELECT id, environment_id, attempt_id FROM placements ORDER BY id")
    assert found == [("plc-1", "env-1", None), ("plc-2", "env-3", None)]
    assert _rows(upgraded, "SELECT id, environment_id, attempt_id FROM all_allocations") == [
        ("alc-1", "env-1", None)
    ]


def test_upgrade_0013_keeps_every_home_and_says_of_none_how_large_it_is(upgraded: sa.Engine) -> None:
    homes = _rows(
        upgraded,
        "SELECT id, size_bytes, measured_at, measuring_host_id, removal_requested_at, removed_at"
        " FROM volumes ORDER BY id",
    )
    assert homes == [("vol-1", *[None] * 5), ("vol-2", *[None] * 5)]


def test_upgrade_0013_takes_wiped_homes_for_removed_and_downgrade_keeps_one_for_each_place(
    empty_database_url: str,
) -> None:
    engine, url = _upgrade(empty_database_url), empty_database_url
    command.downgrade(_config(url), "0012")
    with engine.begin() as db:
        db.exec_driver_sql(
            "INSERT INTO dedications (id, host_id, customer_id, starts_at, ends_at, created_by)"
            " VALUES ('ded-1', 'host-1', 'cus-a', now() - interval '2 days', now(), 'root');"
            "UPDATE volumes SET last_used_at = now() - interval '1 day';"
            "INSERT INTO volume_removals (id, volume_id, host_id, dedication_id, requested_at, removed_at)"
            " VALUES ('rmv-1', 'vol-2', 'host-1', 'ded-1', now() - interval '1 hour', now()),"
            "        ('rmv-0', 'vol-1', 'host-1', 'ded-1', now() - interval '3 days', now())"
        )
    schema.migrate(url, revision="0013")
    gone = "SELECT id FROM volumes WHERE removed_at IS NOT NULL AND removal_requested_at IS NOT NULL"
    assert _rows(engine, gone) == [("vol-2",)], "the other was used again after it was wiped"
    with engine.begin() as db:
        db.exec_driver_sql(
            "INSERT INTO volumes (id, owner_id, host_id) VALUES ('vol-3', 'usr-bob', 'host-1')"
        )
    command.downgrade(_config(url), "0012")
    assert _rows(engine, "SELECT id FROM volumes ORDER BY id") == [("vol-1",), ("vol-3",)]
    assert _rows(engine, "SELECT volume_id FROM placements WHERE id = 'plc-2'") == [("vol-3",)]
    engine.dispose()


def test_upgrade_0014_gives_nothing_a_ceiling(upgraded: sa.Engine) -> None:
    for table in ("images", "workspaces"):
        assert _rows(upgraded, f"SELECT DISTINCT max_lifetime_s FROM {table}") == [(None,)]  # noqa: S608


def test_upgrade_0015_lets_saves_be_cancelled_and_downgrade_takes_them_for_failed(
    empty_database_url: str,
) -> None:
    engine, url = _upgrade(empty_database_url), empty_database_url
    with engine.begin() as db:
        db.exec_driver_sql(
            "INSERT INTO image_saves (id, environment_id, generation, host_id, workspace_id, requested_by,"
            " image_name, display_name, description, base_image_id) SELECT 'sav-1', 'env-1', 3, 'host-1',"
            " workspace_id, owner_id, 'mine', '', '', image_id FROM environments WHERE id = 'env-1';"
            "UPDATE image_saves SET status = 'cancelled', finished_at = now()"
        )
    command.downgrade(_config(url), "0014")
    ended = "SELECT status, reason FROM image_saves"
    assert _rows(engine, ended) == [("failed", "environment_stopped")]
    assert schema.migrate(url)
    assert _rows(engine, ended) == [("failed", "environment_stopped")]
    engine.dispose()


def test_upgrade_0016_begins_without_artifacts(upgraded: sa.Engine) -> None:
    assert _rows(upgraded, "SELECT count(*) FROM artifacts") == [(0,)]


def test_upgrade_0017_begins_without_inputs(upgraded: sa.Engine) -> None:
    assert _rows(upgraded, "SELECT count(*) FROM task_inputs") == [(0,)]
    assert _rows(upgraded, "SELECT count(input_sha256), count(input_size_bytes) FROM tasks") == [(0, 0)]


def test_upgrade_0018_keeps_what_people_were_told_in_their_inbox(empty_database_url: str) -> None:
    engine, url = _upgrade(empty_database_url), empty_database_url
    command.downgrade(_config(url), "0017")
    with engine.begin() as db:
        db.exec_driver_sql(
            "INSERT INTO notifications (id, user_id, kind, level, message, subject_type, subject_id)"
            " SELECT 'ntf-' || n, 'usr-ada', 'test.told', 'info', 'Told.', 'host', 'host-1'"
            " FROM generate_series(1, 3) n"
        )
    assert schema.migrate(url)
    told = "SELECT in_app, digest, count(DISTINCT position) FROM notifications GROUP BY in_app, digest"
    assert _rows(engine, told) == [(True, False, 3)]


def test_upgrade_0019_seeds_rules_that_nothing_has_fired(upgraded: sa.Engine) -> None:
    assert _rows(upgraded, "SELECT count(*) > 20, bool_and(built_in AND enabled) FROM alert_rules") == [
        (True, True)
    ]
    assert _rows(upgraded, "SELECT count(*) FROM alerts") == [(0,)]


def test_upgrade_0020_keeps_attempts_that_run_and_gives_them_no_meeting_place(
    empty_database_url: str,
) -> None:
    engine, url = _upgrade(empty_database_url), empty_database_url
    command.downgrade(_config(url), "0019")
    with engine.begin() as db:
        db.exec_driver_sql(
            "INSERT INTO tasks (id, owner_id, customer_id, workspace_id, name, image_id, command, gpus, cpus,"
            " memory_bytes, status, reason, message, max_lifetime_s, stop_grace_s, max_retries,"
            " retry_delay_s, retry_on) SELECT 'tsk-1', owner_id, customer_id, workspace_id, 'train',"
            " image_id, ARRAY['true'], 0, 1, 1, 'running', 'ready', '', 60, 1, 0, 0, '{}' FROM environments"
            " WHERE id = 'env-1';"
            "INSERT INTO attempts (id, task_id, number, host_id) VALUES ('att-1', 'tsk-1', 1, 'host-1')"
        )
    assert schema.migrate(url)
    kept = "SELECT status, rank, ready_at, rendezvous_address, rendezvous_port FROM attempts"
    assert _rows(engine, kept) == [("assigned", 0, None, None, None)]
    engine.dispose()


def test_upgrade_0021_begins_with_empty_samples_and_no_numbered_heartbeat(upgraded: sa.Engine) -> None:
    for table in ("host_samples", "host_sample_minutes", "host_sample_hours"):
        assert _rows(upgraded, f"SELECT count(*) FROM {table}") == [(0,)]  # noqa: S608
    assert _rows(upgraded, "SELECT DISTINCT heartbeat_sequence FROM hosts") == [(0,)]


def test_upgrade_0023_begins_without_webhooks_and_keeps_mail(upgraded: sa.Engine) -> None:
    assert _rows(upgraded, "SELECT count(*) FROM webhooks") == [(0,)]
    assert _rows(upgraded, "SELECT count(webhook_id) FROM outbox") == [(0,)]


def test_upgrade_0024_takes_images_of_slurm_and_downgrade_withdraws_them(empty_database_url: str) -> None:
    engine, url = _upgrade(empty_database_url), empty_database_url
    with engine.begin() as db:
        db.exec_driver_sql("UPDATE images SET runtime = 'slurm' WHERE id = (SELECT min(id) FROM images)")
    known = "SELECT runtime, status FROM images ORDER BY id LIMIT 1"
    command.downgrade(_config(url), "0023")
    assert _rows(engine, known) == [("process", "withdrawn")]
    assert schema.migrate(url)
    engine.dispose()


def test_every_revision_is_asserted_here() -> None:
    asserted = {name.split("_")[2] for name in globals() if name.startswith("test_upgrade_0")}
    folder = Path(remotegpu_migrations.__file__).parent / "versions"
    missing = {path.name[:4] for path in folder.glob("0*.py")} - {"0001"} - asserted - _ROWS_STAY
    assert not missing, f"add test_upgrade_{missing}_… or, if it changes no row and no column, name it above"


def test_downgrade_and_upgrade_again_keep_what_the_previous_release_knew(empty_database_url: str) -> None:
    upgraded, url = _upgrade(empty_database_url), empty_database_url
    known = (
        "SELECT id, gpu_models, status, workspace_id FROM environments ORDER BY id",
        "SELECT id, name, operational, connection FROM hosts ORDER BY id",
        "SELECT subject_id, resource, limit_value FROM quotas ORDER BY id",
        "SELECT id, status FROM images ORDER BY id",
        "SELECT id, email, status FROM users ORDER BY id",
    )
    before = [_rows(upgraded, statement) for statement in known]
    command.downgrade(_config(url), PREVIOUS)
    assert _rows(upgraded, "SELECT id, gpu_model FROM environments ORDER BY id") == [
        ("env-1", "A100-80GB"), ("env-2", None), ("env-3", None), ("env-4", "T4")
    ]  # fmt: skip
    assert schema.migrate(url)
    assert [_rows(upgraded, statement) for statement in known] == before
    upgraded.dispose()


async def test_server_of_today_works_on_the_upgraded_database_with_old_tokens_and_an_old_agent(
    empty_database_url: str, tmp_path: Path
) -> None:
    url = empty_database_url
    _upgrade(url).dispose()
    live = LiveServer(database_url=url, folder=tmp_path)
    live.start()
    try:
        await _walk(live)
    finally:
        live.stop()
    database = connect(url, pool_size=1)
    async with database.sessions() as db:
        await assert_invariants(db)
    await database.close()


async def _walk(live: LiveServer) -> None:
    async with (
        remotegpu.AsyncClient(live.url, _USER_SECRET) as ada,
        httpx.AsyncClient(base_url=live.url, timeout=20) as http,
    ):
        me = await ada.me.get()
        assert me.user is not None
        assert (me.user.username, me.user.role) == ("ada", "owner")
        assert [one.name for one in me.workspaces] == ["ada"]
        agent = HollowAgent(
            client=http,
            host_id="host-1",
            host_name="one",
            credential=_AGENT_SECRET,
            gpus=[gpu("GPU-1"), gpu("GPU-2", index=1)],
        )
        running = {"workload_id": "env-1", "generation": 3, "observed": "running"}
        registered = await agent.register([running | {"address": "http://192.0.2.1:40000"}])
        assert (registered.status_code, agent.epoch) == (201, 5), registered.text
        assert (await agent.heartbeat()).status_code == 200
        assert (await agent.desired())["env-1"]["desired"] == "running"
        found = await ada.environments.get("env-1")
        assert (found.status, found.generation, found.gpu_models) == ("running", 3, ["A100-80GB"])
        assert found.workspace_id == me.workspaces[0].id
        health = {one["uuid"]: one["health"] for one in await _gpus(http)}
        assert health == {"GPU-1": "healthy", "GPU-2": "unhealthy"}, "a sick GPU does not return by itself"

        await ada.environments.stop("env-1")
        await agent.obey()
        assert (await ada.environments.get("env-1")).status == "stopped"
        uncordoned = await http.post("/v1/hosts/one:uncordon", headers=_ADMIN)
        assert uncordoned.json()["ready"], uncordoned.text
        async with asyncio.timeout(30):
            async for seen in ada.environments.watch("env-2"):
                if seen.status != "pending":
                    break
        await agent.obey()
        started = await ada.environments.get("env-2")
        assert (started.owner, started.status, started.host_name) == ("bob", "running", "one")
        assert [one.uuid for one in started.allocated_gpus] == ["GPU-1"]


async def _gpus(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await http.get("/v1/gpus", headers=_ADMIN)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items
