"""Attempts claimed per second: one server process and PostgreSQL, durable, with 200 hollow agents.

Each agent has four free workers, as the protocol's default is, and claims until nothing is left; then the
same with one free worker each. The attempts are placed beforehand by SQL: what is measured is the claim, not
the queue. Every answer is kept, so an attempt that two agents were given would be seen. Ends with one line of
JSON: claims_per_s, duplicates, claim_ms_p50, claim_ms_p99 and, with one worker, one_worker_claims_per_s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
from sqlalchemy import text

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import embedded_postgres
from remotegpu_server.db import schema
from remotegpu_server.db.engine import Database, connect
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import Actors, LiveServer
from remotegpu_server.tokens import service as tokens

AGENTS = 200
WORKERS = 4


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
            result = asyncio.run(_run(cluster.url("bench"), server, arguments.attempts))
        except BaseException:
            print(server.log.read_text()[-3000:])
            raise
        finally:
            server.stop()
    finally:
        embedded_postgres.stop(folder)
        shutil.rmtree(folder)
    print(json.dumps(result))


async def _run(database_url: str, server: LiveServer, attempts: int) -> dict[str, object]:
    database = connect(database_url)
    try:
        credentials = await _fill(database, attempts)
        many = await _measure(database, server, credentials, workers=WORKERS, attempts=attempts)
        async with database.sessions() as db:
            await db.execute(text("UPDATE placements SET released_at = now(), release_proof = 'admin'"))
            await db.execute(
                text("UPDATE attempts SET status = 'cancelled', finished_at = now(), message = 'Over.'")
            )
            await db.execute(text("UPDATE tasks SET status = 'cancelled', finished_at = now()"))
            await db.commit()
        await _more(database, attempts, first=attempts + 1)
        one = await _measure(database, server, credentials, workers=1, attempts=attempts)
        async with database.sessions() as db:
            await assert_invariants(db)
    finally:
        await database.close()
    return {"agents": AGENTS, "attempts": attempts, **many, "one_worker_claims_per_s": one["claims_per_s"]}


async def _measure(
    database: Database, server: LiveServer, credentials: list[str], *, workers: int, attempts: int
) -> dict[str, object]:
    claimed: list[str] = []
    seconds: list[float] = []
    repeated: list[int] = []
    limits = httpx.Limits(max_connections=AGENTS, max_keepalive_connections=AGENTS)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
        process = psutil.Process(server.pid)
        before, begun = sum(process.cpu_times()[:2]), time.perf_counter()
        agents = [
            _claim_all(client, secret, claimed, seconds, repeated, workers=workers) for secret in credentials
        ]
        await asyncio.gather(*agents)
        total = time.perf_counter() - begun
        cpu_s = sum(process.cpu_times()[:2]) - before
    async with database.sessions() as db:
        stored = await db.scalar(text("SELECT count(*) FROM attempts WHERE status = 'claimed'"))
    assert len(set(claimed)) == stored == attempts, f"{len(set(claimed))} of {attempts} were claimed"
    return {
        "claims_per_s": round(attempts / total, 1),
        "duplicates": sum(count - 1 for count in Counter(claimed).values()),
        "repeated": len(repeated),
        "claim_ms_p50": round(float(np.percentile(seconds, 50)) * 1e3, 1),
        "claim_ms_p99": round(float(np.percentile(seconds, 99)) * 1e3, 1),
        "server_cpu_ms_per_claim": round(1e3 * cpu_s / attempts, 2),
    }


async def _claim_all(
    client: httpx.AsyncClient,
    secret: str,
    claimed: list[str],
    seconds: list[float],
    repeated: list[int],
    *,
    workers: int,
) -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    while True:
        body = {"epoch": 1, "request_id": f"bench-{uuid.uuid4()}", "max_attempts": workers, "wait_s": 0}
        begun = time.perf_counter()
        while (answer := await _ask(client, body, headers)) is None:
            repeated.append(1)
            await asyncio.sleep(0.5)
        found = [one["id"] for one in answer.json()["attempts"]]
        if not found:
            return
        seconds.append(time.perf_counter() - begun)
        claimed += found


async def _ask(
    client: httpx.AsyncClient, body: dict[str, object], headers: dict[str, str]
) -> httpx.Response | None:
    """``None``: no answer, or the server sheds load; an agent repeats the same request."""
    try:
        answer = await client.post("/v1/agent/tasks/claim", json=body, headers=headers)
    except httpx.TransportError:
        return None
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return None
    return answer.raise_for_status()


async def _fill(database: Database, attempts: int) -> list[str]:
    """Hosts as after their registration, with attempts that wait for them; answers the agents' secrets."""
    await Actors(database).user("ada")
    async with database.sessions() as db:
        await db.execute(
            text("""
                INSERT INTO hosts (id, name, connection, epoch, inventory, cpus, memory_bytes, runtime,
                    runtime_healthy, operational, registered_at, last_heartbeat_at, boot_id)
                SELECT 'host-' || n, 'bench-' || n, 'online', 1, '{"images": []}', 1000, 1e12, 'docker', true,
                    'available', now() - interval '1 hour', now(), 'boot-' || n
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
    await _more(database, attempts, first=1)
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
        await db.execute(text("ANALYZE"))
        await db.commit()


if __name__ == "__main__":
    main()
