"""Places requests of the trace through the server's tables, on a PostgreSQL of its own."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.fernet import Fernet
from sqlalchemy import insert, select

from remotegpu_server import embedded_postgres, placement, placing
from remotegpu_server.authz import SYSTEM
from remotegpu_server.crypto import Vault
from remotegpu_server.db import schema, tables
from remotegpu_server.db.engine import Database, connect
from remotegpu_server.environments.service import starting
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import Actors

REQUESTS = 2000
USERS = 100
GPU_BYTES = 80 * 10**9
MIB = 2**20
REGISTERED = datetime(2026, 1, 1, tzinfo=UTC)


def run(nodes: Sequence[Any], tasks: Sequence[Any]) -> dict[str, object]:
    """Decisions per second of one server process, each decision committed before the next."""
    folder = Path(tempfile.mkdtemp(prefix="remotegpu-bench-"))
    folder.chmod(0o755)
    try:
        cluster = embedded_postgres.ensure_running(folder)
        cluster.ensure_database("bench")
        schema.migrate(cluster.url("bench"))
        return asyncio.run(_run(cluster.url("bench"), nodes, tasks))
    finally:
        embedded_postgres.stop(folder)
        shutil.rmtree(folder)


async def _run(url: str, nodes: Sequence[Any], tasks: Sequence[Any]) -> dict[str, object]:
    database = connect(url)
    try:
        chosen = [tasks[index] for index in random.Random(42).sample(range(len(tasks)), REQUESTS)]  # noqa: S311
        ids = await _fill(database, nodes, chosen)
        launch = placing.Launch(vault=Vault(Fernet.generate_key().decode()), workload_url="http://bench")
        seconds, placed = [], 0
        begun = time.perf_counter()
        for environment_id in ids:
            started = time.perf_counter()
            placed += await _place(database, environment_id, launch)
            seconds.append(time.perf_counter() - started)
        total = time.perf_counter() - begun
        async with database.sessions() as db:
            await assert_invariants(db)
    finally:
        await database.close()
    return {
        "requests": len(ids),
        "placed": placed,
        "decisions_per_s": round(len(ids) / total, 1),
        "decision_ms_p50": round(float(np.percentile(seconds, 50)) * 1e3, 2),
        "decision_ms_p99": round(float(np.percentile(seconds, 99)) * 1e3, 2),
        "seconds": round(total, 1),
    }


async def _place(database: Database, environment_id: str, launch: placing.Launch) -> bool:
    row = tables.Environment
    async with database.sessions() as db:
        found = select(row, tables.Image).join(tables.Image, tables.Image.id == row.image_id)
        environment, image = (await db.execute(found.where(row.id == environment_id))).one()
        refusal = await starting.place(
            db, environment=environment, image=image, ahead=[], launch=launch, actor=SYSTEM
        )
        await db.commit()
    return not isinstance(refusal, placement.Refusal)


async def _fill(database: Database, nodes: Sequence[Any], tasks: Sequence[Any]) -> list[str]:
    """The hosts as after their registration, the users, and the requests as pending environments."""
    for number in range(USERS):
        await Actors(database).user(f"bench{number}")
    hosts = {node.name: tables.new_id("host") for node in nodes}
    async with database.sessions() as db:
        await db.execute(insert(tables.Host), [_host(node, hosts[node.name]) for node in nodes])
        await db.execute(insert(tables.Gpu), [gpu for node in nodes for gpu in _gpus(node, hosts[node.name])])
        image = {"id": "img-bench", "name": "bench", "reference": "bench:1", "runtime": "docker"}
        await db.execute(insert(tables.Image).values(**image, display_name="", description=""))
        space = tables.Workspace
        found = await db.execute(
            select(space.personal_of, space.customer_id, space.id).order_by(space.personal_of)
        )
        owners = [dict(zip(("owner_id", "customer_id", "workspace_id"), row, strict=True)) for row in found]
        rows = [owners[number % USERS] | _environment(task, number) for number, task in enumerate(tasks)]
        await db.execute(insert(tables.Environment), rows)
        await db.commit()
    return [row["id"] for row in rows]


def _host(node: Any, host_id: str) -> dict[str, object]:
    return {
        "id": host_id,
        "name": node.name,
        "connection": "online",
        "epoch": 1,
        "inventory": {"images": []},
        "cpus": node.cpu_milli // 1000,
        "memory_bytes": node.memory_mib * MIB,
        "runtime": "docker",
        "runtime_healthy": True,
        "operational": "available",
        "registered_at": REGISTERED,
    }


def _gpus(node: Any, host_id: str) -> list[dict[str, object]]:
    return [
        {
            "id": tables.new_id("gpu"),
            "host_id": host_id,
            "uuid": f"GPU-{node.name}-{index}",
            "index": index,
            "model": node.model,
            "product": node.model,
            "memory_total_bytes": GPU_BYTES,
            "simulated": True,
        }
        for index in range(node.gpus)
    ]


def _environment(task: Any, number: int) -> dict[str, object]:
    share = 0 < task.asked < 1000
    return {
        "id": tables.new_id("env"),
        "name": f"bench-{number}",
        "display_name": "",
        "image_id": "img-bench",
        "gpus": task.gpus,
        "gpu_models": list(task.models),
        "gpu_memory_bytes": GPU_BYTES // 1000 * task.gpu_milli if share else None,
        "cpus": task.cpu_milli / 1000,
        "memory_bytes": max(task.memory_mib, 256) * MIB,
        "desired": "running",
        "status": "pending",
        "reason": "requested",
        "message": "",
    }
