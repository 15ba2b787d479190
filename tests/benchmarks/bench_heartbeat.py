"""Heartbeats of hollow agents with 8 GPUs each: what they cost one server process, and the most it takes.

First as they come in life: 1,000 hosts, one heartbeat each in ten seconds, evenly. Then as many as it takes,
over 64 connections, and the same bytes into a bare FastAPI endpoint that validates them and answers. CPU is
the server process's own, PostgreSQL (durable) is beside it. Ends with one line of JSON: cpu_percent_at_1000,
p50_ms, p99_ms, max_per_s, cpu_ms_at_max, bare_per_s, share_of_bare, rows (written, of those sent).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from sqlalchemy import text

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import embedded_postgres
from remotegpu_server.db import schema
from remotegpu_server.db.engine import Database, connect
from remotegpu_server.testing import LiveServer
from remotegpu_server.tokens import service as tokens

HOSTS = 1000
GPUS = 8
PACE_S = 10.0
CONNECTIONS = 64

BARE = """
import sys
import uvicorn
from fastapi import FastAPI
from remotegpu.types.agent import Heartbeat, HeartbeatReply
app = FastAPI()

@app.post("/v1/agent/heartbeat")
async def heartbeat(body: Heartbeat) -> HeartbeatReply:
    return HeartbeatReply(next_in_s=10.0, revision=body.epoch)

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", ws="none",
            log_level="warning", access_log=False, server_header=False)
"""


def body(sequence: int, host: int) -> bytes:
    """What an agent with 8 busy GPUs and two environments sends."""
    gauges = {
        "utilization_percent": 71.3, "memory_utilization_percent": 40.2, "temperature_c": 63.0,
        "power_w": 512.4, "sm_clock_mhz": 1755.0, "pcie_rx_bytes_per_s": 1203.1, "pcie_tx_bytes_per_s": 805.3,
    }  # fmt: skip
    metrics = gauges | {
        "utilization_max_percent": 99.0, "memory_used_bytes": 51 * 2**30, "memory_total_bytes": 80 * 2**30,
        "power_limit_w": 700.0, "memory_clock_mhz": 2619.0, "energy_j": 1234567.0, "ecc_corrected": 0,
        "ecc_uncorrected": 0, "remapped_rows": 0, "pcie_replays": 0, "throttle_reasons": ["power_cap"],
    }  # fmt: skip
    uuids = [f"GPU-{host:06d}-{index}" for index in range(GPUS)]
    told = {
        "epoch": 1,
        "sequence": sequence,
        "sampled_at": "2026-11-27T00:00:00Z",
        "runtime_healthy": True,
        "runtime_detail": "27.5.1",
        "host": {
            "cpu_percent": 31.0, "memory_used_bytes": 2**36, "memory_total_bytes": 2**38, "load_1m": 12.0,
            "disk_used_bytes": 2**36, "disk_total_bytes": 2**40, "network_rx_bytes_per_s": 12.5,
        },
        "host_highest": {"cpu_percent": 80.0},
        "gpus": [
            {"uuid": uuid, "metrics": metrics, "mean": gauges, "highest": gauges} for uuid in uuids
        ],
        "workloads": [
            {
                "workload_id": f"env-{host:06d}-{number}", "cpu_percent": 120.0, "memory_used_bytes": 2**34,
                "gpu_memory_bytes": {uuids[number]: 2**35}, "connections": 2, "kernel_idle_s": 12.5,
            }
            for number in range(2)
        ],
        "observed": [],
    }  # fmt: skip
    return json.dumps(told).encode()


@dataclass
class Wire:
    """One kept connection that speaks just enough HTTP."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, secret: str, sent: bytes) -> bool:
        """False: the server sheds load, and an agent would come again."""
        head = (
            "POST /v1/agent/heartbeat HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {secret}\r\nContent-Length: {len(sent)}\r\n\r\n"
        )
        self.writer.write(head.encode() + sent)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        rest = await self.reader.readexactly(length)
        if answer.startswith(b"HTTP/1.1 503"):
            return False
        assert answer.startswith(b"HTTP/1.1 200"), (answer + rest).decode()
        return True


async def _fill(database: Database) -> list[str]:
    """Hosts as after their registration; answers the agents' secrets."""
    async with database.sessions() as db:
        await db.execute(
            text("""
                INSERT INTO hosts (id, name, connection, epoch, inventory, cpus, memory_bytes, runtime,
                    runtime_healthy, operational, registered_at, last_heartbeat_at, boot_id)
                SELECT 'host-' || n, 'bench-' || n, 'online', 1, '{"images": []}', 64, 1e12, 'docker', true,
                    'available', now() - interval '1 hour', now(), 'boot-' || n
                FROM generate_series(0, CAST(:hosts AS int) - 1) AS n
            """),
            {"hosts": HOSTS},
        )
        await db.execute(
            text("""
                INSERT INTO gpus (id, host_id, uuid, index, model, product, memory_total_bytes, simulated)
                SELECT 'gpu-' || n || '-' || i, 'host-' || n, 'GPU-' || lpad(n::text, 6, '0') || '-' || i, i,
                    'H100-80GB', 'NVIDIA H100', 85899345920, true
                FROM generate_series(0, CAST(:hosts AS int) - 1) AS n,
                    generate_series(0, CAST(:gpus AS int) - 1) AS i
            """),
            {"hosts": HOSTS, "gpus": GPUS},
        )
        minted = [
            await tokens.mint(db, kind=TokenKind.AGENT, scopes=[Scope.AGENT], host_id=f"host-{number}")
            for number in range(HOSTS)
        ]
        await db.commit()
        await db.execute(text("ANALYZE"))
        await db.commit()
    return [one.secret for one in minted]


async def _paced(port: int, secrets: list[str], process: psutil.Process, seconds: float) -> dict[str, float]:
    """Evenly, whatever the answers take: a late one does not hold up the next."""
    wires = [await Wire.open(port) for _ in range(CONNECTIONS)]
    free: asyncio.Queue[Wire] = asyncio.Queue()
    for wire in wires:
        free.put_nowait(wire)
    took: list[float] = []

    async def one(host: int, sequence: int, due: float) -> None:
        wire = await free.get()
        await wire.post(secrets[host], body(sequence, host))
        took.append(time.perf_counter() - due)
        free.put_nowait(wire)

    before, begun = sum(process.cpu_times()[:2]), time.perf_counter()
    running: set[asyncio.Task[None]] = set()
    for number in range(int(seconds * HOSTS / PACE_S)):
        due = begun + number * PACE_S / HOSTS
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        running.add(asyncio.create_task(one(number % HOSTS, number // HOSTS + 1, due)))
    await asyncio.gather(*running)
    total = time.perf_counter() - begun
    cpu_s = sum(process.cpu_times()[:2]) - before
    for wire in wires:
        wire.writer.close()
    return {
        "cpu_percent_at_1000": round(100 * cpu_s / total, 1),
        "p50_ms": round(float(np.percentile(took, 50)) * 1e3, 1),
        "p99_ms": round(float(np.percentile(took, 99)) * 1e3, 1),
    }


async def _most(port: int, secrets: list[str], seconds: float, first: int) -> tuple[float, int]:
    """As many as it takes; answers how many a second, and how many in all."""
    ends, sent = time.perf_counter() + seconds, 0

    async def one(number: int) -> int:
        wire, done = await Wire.open(port), 0
        mine = range(number, HOSTS, CONNECTIONS)
        while time.perf_counter() < ends:
            host = mine[done % len(mine)]
            done += await wire.post(secrets[host], body(first + done // len(mine), host))
        wire.writer.close()
        return done

    begun = time.perf_counter()
    sent = sum(await asyncio.gather(*(one(number) for number in range(CONNECTIONS))))
    return sent / (time.perf_counter() - begun), sent


async def _run(database_url: str, server: LiveServer, seconds: float, bare_port: int) -> dict[str, float]:
    database = connect(database_url)
    try:
        secrets = await _fill(database)
        port = int(server.url.rpartition(":")[2])
        paced = await _paced(port, secrets, psutil.Process(server.pid), seconds)
        process = psutil.Process(server.pid)
        before = sum(process.cpu_times()[:2])
        most, sent = await _most(port, secrets, seconds / 2, first=10**6)
        cpu_s = sum(process.cpu_times()[:2]) - before
        with _bare(bare_port):
            await _answers(bare_port)
            bare_most, _ = await _most(bare_port, secrets, seconds / 2, first=1)
        await asyncio.sleep(3)
        async with database.sessions() as db:
            written = await db.scalar(text("SELECT count(*) FROM host_samples"))
    finally:
        await database.close()
    return paced | {
        "max_per_s": round(most, 1),
        "cpu_ms_at_max": round(1e3 * cpu_s / sent, 2),
        "bare_per_s": round(bare_most, 1),
        "share_of_bare": round(most / bare_most, 3),
        "rows": round((written or 0) / (int(seconds * HOSTS / PACE_S) + sent), 4),
    }


@contextlib.contextmanager
def _bare(port: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", BARE, str(port)])
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


async def _answers(port: int) -> None:
    ends = time.perf_counter() + 30
    while True:
        try:
            (await Wire.open(port)).writer.close()
            return
        except OSError:
            assert time.perf_counter() < ends, "the bare endpoint does not start"
            await asyncio.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--bare-port", type=int, default=18765)
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
            result = asyncio.run(_run(cluster.url("bench"), server, arguments.seconds, arguments.bare_port))
        except BaseException:
            print(server.log.read_text()[-3000:])
            raise
        finally:
            server.stop()
    finally:
        embedded_postgres.stop(folder)
        shutil.rmtree(folder)
    print(json.dumps({"hosts": HOSTS, "gpus": GPUS, **result}))


if __name__ == "__main__":
    main()
