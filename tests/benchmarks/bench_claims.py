"""Attempts claimed per second: one server process and PostgreSQL, durable, with 200 hollow agents.

Each agent has four free workers, as the protocol's default is, and claims until nothing is left; then the
same with one free worker each, so that every request claims one attempt. The attempts are placed beforehand
by SQL: what is measured is the claim, not the queue. Every answer is kept, so an attempt that two agents were
given would be seen. Ends with one line of JSON: claims_per_s, duplicates, claim_ms_p50, claim_ms_p99, the CPU
time that server, PostgreSQL and agents took for a request, the same with one worker (one_worker_...), and the
load of the machine at the end (over 1, 5 and 15 minutes).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sqlalchemy import text

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import embedded_postgres
from remotegpu_server.db import schema
from remotegpu_server.db.engine import Database, connect
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import Actors, LiveServer
from remotegpu_server.tokens import service as tokens

AGENTS = 200
WORKERS = 4
HISTORY = 20_000
"""Attempts that ended before, so that no plan is good for empty tables only."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=4000)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="remotegpu-bench-"))
    folder.chmod(0o755)
    try:
        cluster = embedded_postgres.ensure_running(folder)
        cluster.ensure_database("bench")
        schema.migrate(cluster.url("bench"))
        server = LiveServer(database_url=cluster.url("bench"), folder=folder)
        server.start(REMOTEGPU_LOG_LEVEL="warning")
        try:
            result = asyncio.run(_run(cluster, server, arguments.attempts))
        except BaseException:
            print(server.log.read_text()[-3000:])
            raise
        finally:
            server.stop()
    finally:
        embedded_postgres.stop(folder)
        shutil.rmtree(folder)
    print(json.dumps(result))


async def _run(cluster: EmbeddedPostgres, server: LiveServer, attempts: int) -> dict[str, object]:
    database = connect(cluster.url("bench"))
    try:
        credentials = await _fill(database)
        await _more(database, HISTORY, first=1)
        await _end_all(database)
        measured = []
        for first, workers in ((HISTORY + 1, WORKERS), (HISTORY + attempts + 1, 1)):
            await _more(database, attempts, first=first)
            answers = _measure(cluster, server, credentials, workers=workers)
            await _check(database, answers, attempts)
            measured.append(_figures(answers))
            await _end_all(database)
    finally:
        await database.close()
    many, one = measured
    alone = {f"one_worker_{name}": value for name, value in one.items()}
    busy = [round(one, 1) for one in os.getloadavg()]
    return {"agents": AGENTS, "attempts": attempts, "load": busy, **many, **alone}


def _measure(
    cluster: EmbeddedPostgres, server: LiveServer, credentials: list[str], *, workers: int
) -> dict[str, Any]:
    """What the agents saw, with the CPU seconds that server and PostgreSQL took for it."""
    program = [sys.executable, str(Path(__file__).with_name("claiming_agents.py"))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agents:
        assert agents.stdin is not None
        assert agents.stdout is not None
        given = {"port": server.port, "credentials": credentials, "workers": workers}
        print(json.dumps(given), file=agents.stdin, flush=True)
        assert agents.stdout.readline() == "ready\n", "the agents' own error is above"
        before = _cpu_s(server.pid), _cpu_s(cluster.pid)
        print("go", file=agents.stdin, flush=True)
        seen: dict[str, Any] = json.loads(agents.stdout.readline())
        after = _cpu_s(server.pid), _cpu_s(cluster.pid)
    seen["server_cpu_s"], seen["postgres_cpu_s"] = after[0] - before[0], after[1] - before[1]
    return seen


def _cpu_s(pid: int) -> float:
    """Of a process and all it has started, also what has ended."""
    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:4]) for one in (process, *process.children()))


async def _check(database: Database, seen: dict[str, Any], attempts: int) -> None:
    """Each attempt was given out, and the database knows it; afterwards all invariants hold."""
    async with database.sessions() as db:
        stored = await db.scalar(text("SELECT count(*) FROM attempts WHERE status = 'claimed'"))
        found = len(set(seen["claimed"]))
        assert found == stored == attempts, f"{found} of {attempts} were claimed, {stored} are stored"
        await assert_invariants(db)


def _figures(seen: dict[str, Any]) -> dict[str, float]:
    claims = len(seen["claimed"])
    return {
        "claims_per_s": round(claims / seen["total_s"], 1),
        "duplicates": claims - len(set(seen["claimed"])),
        "requests": seen["requests"],
        "repeated": seen["repeated"],
        "claim_ms_p50": round(float(np.percentile(seen["seconds"], 50)) * 1e3, 1),
        "claim_ms_p99": round(float(np.percentile(seen["seconds"], 99)) * 1e3, 1),
        **{
            f"{who}_cpu_ms_per_request": round(1e3 * seen[key] / seen["requests"], 2)
            for who, key in (("server", "server_cpu_s"), ("postgres", "postgres_cpu_s"), ("agents", "cpu_s"))
        },
    }


async def _end_all(database: Database) -> None:
    """All that was claimed is over."""
    async with database.sessions() as db:
        for table, values in (
            ("placements", "released_at = now(), release_proof = 'admin' WHERE released_at IS NULL"),
            (
                "attempts",
                "status = 'cancelled', finished_at = now(), message = 'Over.' WHERE finished_at IS NULL",
            ),
            ("tasks", "status = 'cancelled', finished_at = now() WHERE finished_at IS NULL"),
        ):
            await db.execute(text(f"UPDATE {table} SET {values}"))  # noqa: S608  the text is ours
        await db.commit()


async def _fill(database: Database) -> list[str]:
    """Hosts that have registered, and are online for as long as this lasts; answers the agents' secrets."""
    await Actors(database).user("ada")
    async with database.sessions() as db:
        await db.execute(
            text("""
                INSERT INTO hosts (id, name, connection, epoch, inventory, cpus, memory_bytes, runtime,
                    runtime_healthy, operational, registered_at, last_heartbeat_at, boot_id)
                SELECT 'host-' || n, 'bench-' || n, 'online', 1, '{"images": []}', 1000, 1e12, 'docker', true,
                    'available', now() - interval '1 hour', now() + interval '1 hour', 'boot-' || n
                FROM generate_series(1, :agents) AS n
            """),
            {"agents": AGENTS},
        )
        await db.execute(
            text("""
                INSERT INTO images (id, name, reference, runtime, display_name, description)
                VALUES ('img-bench', 'bench', 'bench:1', 'docker', '', '')
            """)
        )
        await db.execute(
            text("""
                INSERT INTO volumes (id, owner_id, host_id)
                SELECT 'vol-' || h.id, u.id, h.id FROM hosts h, users u WHERE u.username = 'ada'
            """)
        )
        minted = [
            await tokens.mint(db, kind=TokenKind.AGENT, scopes=[Scope.AGENT], host_id=f"host-{number}")
            for number in range(1, AGENTS + 1)
        ]
        await db.commit()
    return [one.secret for one in minted]


async def _more(database: Database, attempts: int, *, first: int) -> None:
    """Tasks with an attempt each that waits to be claimed, evenly over the hosts."""
    async with database.sessions() as db:
        await db.execute(
            text("""
                INSERT INTO tasks (id, owner_id, customer_id, workspace_id, name, image_id, command, gpus,
                    cpus, memory_bytes, status, reason, message, max_lifetime_s, stop_grace_s, max_retries,
                    retry_delay_s, retry_on)
                SELECT 'tsk-' || n, u.id, w.customer_id, w.id, 'bench', 'img-bench', '{true}', 0, 0.1, 1,
                    'assigned', 'placed', 'Placed.', 60, 1, 0, 1, '{lost}'
                FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n,
                    users u JOIN workspaces w ON w.personal_of = u.id
                WHERE u.username = 'ada'
            """),
            {"first": first, "last": first + attempts - 1},
        )
        await db.execute(
            text("""
                INSERT INTO attempts (id, task_id, number, host_id)
                SELECT 'att-' || n, 'tsk-' || n, 1, 'host-' || (n % :agents + 1)
                FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n
            """),
            {"first": first, "last": first + attempts - 1, "agents": AGENTS},
        )
        await db.execute(
            text("""
                INSERT INTO placements (id, attempt_id, generation, host_id, user_id, customer_id,
                    workspace_id, volume_id, cpus, memory_bytes)
                SELECT 'plc-' || a.id, a.id, 1, a.host_id, t.owner_id, t.customer_id, t.workspace_id,
                    'vol-' || a.host_id, 0.1, 1
                FROM attempts a JOIN tasks t ON t.id = a.task_id WHERE a.status = 'assigned'
            """)
        )
        await db.commit()
    async with database.engine.connect() as connection:  # as autovacuum leaves them
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM (ANALYZE)"))


if __name__ == "__main__":
    main()
