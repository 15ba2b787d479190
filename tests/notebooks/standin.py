"""A server that answers from a script, over real HTTP: what the widgets need of the API and no more."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import sin
from typing import Any

from remotegpu.types.environments import EnvironmentUsage, GpuSample, GpuUsage
from remotegpu.types.hosts import Capacity, GpuMetrics, ModelCapacity
from remotegpu.types.quotas import Quota, QuotaLine, QuotaResource, QuotaSubject

ENVIRONMENT = "11111111-2222-4333-8444-555555555555"
TOKEN = "rgw_standin_" + "s" * 43
GIB = 2**30


def gpu(
    index: int = 0,
    *,
    model: str = "A100-80GB",
    simulated: bool = True,
    now: GpuMetrics | None = None,
    busy: float = 0.6,
) -> GpuUsage:
    """A GPU with ten minutes behind it."""
    newest = datetime.now(tz=UTC)
    history = [
        GpuSample(
            at=newest - timedelta(seconds=10 * age),
            utilization_percent=max(
                0.0, min(100.0, 100 * busy + 25 * sin(age / 4 + index) + 9 * sin(age * 1.7))
            ),
            memory_used_bytes=int((22 + 9 * index % 40 - age * 0.15) * GIB),
        )
        for age in range(60, -1, -1)
    ]
    metrics = now or GpuMetrics(
        utilization_percent=history[-1].utilization_percent,
        memory_used_bytes=history[-1].memory_used_bytes,
        temperature_c=58.0 + index,
        power_w=231.0,
        power_limit_w=400.0,
    )
    return GpuUsage(
        uuid=f"GPU-{index:08d}-0000",
        model=model,
        simulated=simulated,
        memory_total_bytes=80 * GIB,
        now=metrics,
        workload_memory_bytes=None,
        history=history,
    )


def usage(*gpus: GpuUsage) -> EnvironmentUsage:
    now = datetime.now(tz=UTC)
    return EnvironmentUsage(
        environment_id=ENVIRONMENT,
        sampled_at=now,
        gpus=list(gpus),
        cpu_percent=143.0,
        memory_used_bytes=3 * GIB,
        memory_limit_bytes=16 * GIB,
        started_at=now - timedelta(minutes=12, seconds=5),
    )


def line(resource: str, used: float, limit: int | None, subject: str = "user") -> QuotaLine:
    return QuotaLine(
        subject=QuotaSubject(subject),
        subject_id="s",
        subject_name="s",
        resource=QuotaResource(resource),
        limit=limit,
        used=used,
        available=None if limit is None else max(0.0, limit - used),
        window_s=None,
        policy=None,
        raised_until=None,
    )


def quota() -> Quota:
    return Quota(
        lines=[
            line("gpus", 1, 2),
            line("environments", 1, 3),
            line("cpus", 7, 8),
            line("memory_bytes", 16 * GIB, None),
            line("gpus", 6, 6, "customer"),
            line("environments", 6, None, "customer"),
        ]
    )


def capacity() -> Capacity:
    model = ModelCapacity(
        model="A100-80GB",
        memory_total_bytes=80 * GIB,
        simulated=True,
        total=8,
        free=5,
        largest_free_on_one_host=3,
        largest_free_share_bytes=80 * GIB,
    )
    return Capacity(
        gpu_models=[model],
        mig_profiles=[],
        cpus_free_on_one_host=4.0,
        memory_free_bytes_on_one_host=8 * GIB,
        hosts_ready=2,
        hosts_total=2,
        pending_environments=0,
        pending_tasks=0,
    )


class StandIn:
    """What the server says; change it while it runs."""

    def __init__(self) -> None:
        self.url = ""
        self.usage: EnvironmentUsage | None = usage(gpu())
        self.quota = quota()
        self.capacity = capacity()
        self.broken: tuple[int, dict[str, Any]] | None = None
        self.requests: list[tuple[str, str | None]] = []

    def answer(self, path: str, token: str | None) -> tuple[int, str]:
        self.requests.append((path, token))
        if self.broken is not None:
            status, body = self.broken
            return status, json.dumps(body)
        if token != f"Bearer {TOKEN}":
            return 401, json.dumps(error("token_invalid", "The token is not valid."))
        found = {
            f"/v1/environments/{ENVIRONMENT}/usage": self.usage,
            "/v1/quota": self.quota,
            "/v1/capacity": self.capacity,
        }.get(path)
        if found is None:
            return 404, json.dumps(error("not_found", "There is no such thing."))
        return 200, found.model_dump_json()


def error(code: str, detail: str) -> dict[str, Any]:
    return {"error": code, "detail": detail, "hint": None, "request_id": "r", "data": {}}


@contextmanager
def standin() -> Iterator[StandIn]:
    """A stand-in on a free port of the loopback address."""
    script = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = script.answer(self.path, self.headers.get("Authorization"))
            content = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: Any) -> None:
            """The test's output is not a log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
