"""Hot queries at 10,000 rows: none of them reads a big table from end to end.

The statements are recorded while the server works (heartbeat, desired set, report, create, a task, a pass of
every loop), so a changed query is looked at as it is. PostgreSQL explains each with the values it ran with.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server import invariants, retention
from remotegpu_server.app import LOOPS
from remotegpu_server.environments import history
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors, Person

ROWS = 10_000
BIG = ROWS // 2
"""A table with more rows than this must not be read as a whole."""

SELDOM = (invariants.LOOP, history.LOOP, retention.LOOP)
"""Look at, or clear away, what is old: once in a minute or less, in batches."""

_FILL = """
INSERT INTO environments (id, owner_id, customer_id, workspace_id, name, display_name, image_id, gpus, cpus,
    memory_bytes, desired, status, reason, message, stopped_at)
SELECT 'env-old' || n, e.owner_id, e.customer_id, e.workspace_id, 'old' || n, '', e.image_id, 1, 1,
    1024, 'deleted', 'deleted', 'requested', 'Deleted.', now()
FROM environments e, generate_series(1, {rows}) n WHERE e.name = 'seed';
INSERT INTO placements (id, environment_id, generation, host_id, user_id, customer_id, workspace_id,
    volume_id, cpus, memory_bytes, placed_at, released_at, release_proof)
SELECT 'plc-old' || n, 'env-old' || n, 1, p.host_id, p.user_id, p.customer_id, p.workspace_id,
    p.volume_id, 1, 1024, now() - interval '91 days', now() - interval '90 days', 'absent'
FROM placements p, generate_series(1, {rows}) n WHERE p.released_at IS NULL;
INSERT INTO allocations (id, gpu_id, host_id, placement_id, environment_id, user_id, customer_id,
    workspace_id, allocated_at, released_at, release_proof)
SELECT 'alc-old' || n, a.gpu_id, a.host_id, 'plc-old' || n, 'env-old' || n, a.user_id, a.customer_id,
    a.workspace_id, now() - interval '91 days', now() - interval '90 days', 'absent'
FROM allocations a, generate_series(1, {rows}) n WHERE a.released_at IS NULL;
INSERT INTO tokens (id, secret_hash, kind, scopes, user_id, environment_id, revoked_at)
SELECT 'old' || n, '', 'workload', '{{}}', e.owner_id, 'env-old' || n, now()
FROM environments e, generate_series(1, {rows}) n WHERE e.name = 'seed';
INSERT INTO tasks (id, owner_id, customer_id, workspace_id, name, image_id, command, gpus, cpus, memory_bytes,
    status, reason, message, max_lifetime_s, stop_grace_s, max_retries, retry_delay_s, retry_on,
    created_at, finished_at)
SELECT 'tsk-old' || n, e.owner_id, e.customer_id, e.workspace_id, 'old', e.image_id, '{{x}}', 1, 1, 1024,
    'succeeded', 'succeeded', 'Done.', 60, 30, 0, 10, '{{}}', now() - n * interval '1 second', now()
FROM environments e, generate_series(1, {rows}) n WHERE e.name = 'seed';
INSERT INTO attempts (id, task_id, number, host_id, status, message, claimed_at, finished_at)
SELECT 'att-old' || n, 'tsk-old' || n, 1, h.id, 'succeeded', 'Done.', now(), now()
FROM hosts h, generate_series(1, {rows}) n;
INSERT INTO placements (id, attempt_id, generation, host_id, user_id, customer_id, workspace_id,
    volume_id, cpus, memory_bytes, placed_at, released_at, release_proof)
SELECT 'plc-task' || n, 'att-old' || n, 1, p.host_id, p.user_id, p.customer_id, p.workspace_id,
    p.volume_id, 1, 1024, now() - interval '91 days', now() - interval '90 days', 'absent'
FROM placements p, generate_series(1, {rows}) n WHERE p.released_at IS NULL;
INSERT INTO events (kind, subject_type, subject_id, actor, message)
SELECT 'environment.status', 'environment', 'env-old' || n, 'x', '' FROM generate_series(1, {rows}) n;
INSERT INTO host_samples (host_id, at, host, gpus, workloads)
SELECT h.id, now() - n * interval '1 second', '{{}}', '{{}}', '{{}}'
FROM hosts h, generate_series(1, {rows}) n;
DELETE FROM capacity_changes
"""
_SEQUENTIAL = ("Seq Scan", "Parallel Seq Scan")


async def test_hot_queries_do_not_read_history(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=4, cpus=1000)
    ada = await actors.user("ada")
    await fleet.limit("user", ada.id, gpus=3, storage_bytes=2**40)
    await fleet.limit("customer", "default", gpus=100, cpus=100, environments=100, storage_bytes=2**40)
    await fleet.create(ada.headers, "seed", gpus=1)
    await agent.heartbeat()
    async with app.state.database.sessions() as db:
        for statement in _FILL.format(rows=ROWS).split(";"):
            await db.execute(text(statement))
        await db.commit()
    async with app.state.database.engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("ANALYZE"))

    statements: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            statements.setdefault(statement, parameters)

    engines = [app.state.database.engine.sync_engine, app.state.database.heartbeat_engine.sync_engine]
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", note)
    await agent.obey()
    await agent.heartbeat()
    made = await fleet.create(ada.headers, "next", gpus=2)
    assert made.status_code == 201, made.text
    await fleet.create(ada.headers, "waits", gpus=4)
    await _run_a_task(fleet, agent, ada)
    for loop in LOOPS:
        if loop not in SELDOM:
            await loop.run(work)
    await fleet.act(ada.headers, made.json()["id"], "stop")
    await agent.obey()
    for engine in engines:
        sa.event.remove(engine, "before_cursor_execute", note)

    slow: list[str] = []
    async with app.state.database.engine.connect() as connection:
        found = await connection.execute(text("SELECT relname, reltuples FROM pg_class WHERE relkind = 'r'"))
        sizes = {row.relname: row.reltuples for row in found}
        for statement, parameters in statements.items():
            explained = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
            slow += [
                f"{table}: {' '.join(statement.split())}"
                for table in _read_whole(explained.scalar())
                if sizes.get(table, 0) > BIG and table != "host_samples"  # of two hours, by host
            ]
    assert len(statements) > 30
    assert not slow, "\n".join(slow)


async def _run_a_task(fleet: Fleet, agent: HollowAgent, ada: Person) -> None:
    body = {"image": "base", "command": ["x"], "cpus": 0.1}
    first = (await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)).json()["tasks"][0]["id"]
    after = body | {"depends_on": [{"task_id": first}], "array": {"size": 2, "max_parallel": 1}}
    assert (await fleet.client.post("/v1/tasks", headers=ada.headers, json=after)).status_code == 201
    (attempt,) = await agent.claim()
    for verb in ("accept", "start", "renew"):
        assert (await agent.attempt(attempt["id"], verb)).status_code < 300
    await agent.attempt(attempt["id"], "progress", progress=0.5)
    await agent.poll()
    for path in (f"/v1/tasks/{first}", f"/v1/tasks/{first}/attempts", "/v1/tasks"):
        assert (await fleet.client.get(path, headers=ada.headers)).status_code == 200
    assert (await agent.complete(attempt["id"])).status_code == 204
    assert (await agent.attempt(attempt["id"], "release")).status_code == 204


def _read_whole(plan: Any) -> list[str]:
    """Tables that a plan reads sequentially."""
    if isinstance(plan, list):
        return [table for part in plan for table in _read_whole(part)]
    if not isinstance(plan, dict):
        return []
    own = [plan["Relation Name"]] if plan.get("Node Type") in _SEQUENTIAL else []
    return own + [table for part in plan.values() for table in _read_whole(part)]
