"""A server that answers what the test says, behind the real client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio

import remotegpu
from remotegpu import AsyncClient
from remotegpu.types.environments import Environment
from remotegpu_spawner import launch, stopping

ENVIRONMENT: dict[str, Any] = {
    "id": "env-1", "name": "default", "display_name": "", "owner": "ada", "owner_id": "usr-1",
    "customer_id": "cus-1", "workspace_id": "wsp-1", "status": "starting", "reason": "placed",
    "message": "Placed on gpu-host.",
    "progress_percent": None, "queue_position": None, "wait": None, "priority": 5,
    "preemptible": False, "min_run_s": 0.0, "start_at": None, "reservation_id": None,
    "preempt_at": None,
    "generation": 1, "image": "base",
    "image_reference": "lab/base:1", "gpus": 1,
    "gpu_models": [], "gpu_memory_bytes": None, "min_gpu_memory_bytes": None,
    "max_gpu_memory_bytes": None, "mig_profile": None, "host_labels": {}, "cpus": 1.0, "memory_bytes": 2**31,
    "env": {}, "host_id": "host-1", "host_name": "gpu-host", "allocated_gpus": [], "simulated": False,
    "address": None, "exit_code": None, "log_tail": None, "created_at": "2026-11-24T00:00:00Z",
    "started_at": None, "stopped_at": None,
    "stop_at": None, "max_lifetime_s": None, "idle": None, "idle_since": None, "stops_at": None,
}  # fmt: skip


def environment(**changes: Any) -> Environment:
    return Environment.model_validate(ENVIRONMENT | changes)


class ScriptedServer:
    """Answers each request with what `answer` gives: a body, or an error's (status, code)."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.answer: Callable[[str], dict[str, Any] | tuple[int, str] | Exception] = lambda _: ENVIRONMENT

    async def handle(self, request: httpx.Request) -> httpx.Response:
        line = f"{request.method} {request.url.path}"
        self.requests.append(line)
        found = self.answer(line)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, tuple):
            status, code = found
            body = {"error": code, "detail": f"{code}.", "hint": None, "request_id": "r", "data": {}}
            return httpx.Response(status, json=body)
        return httpx.Response(200, content=json.dumps(found).encode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    """With pauses that a test can wait for."""
    for module, name in (
        (launch, "PACE_STARTING_S"),
        (launch, "PACE_WAITING_S"),
        (stopping, "FIRST_PAUSE_S"),
        (stopping, "PACE_STARTING_S"),
    ):
        monkeypatch.setattr(module, name, 0.001)
    return ScriptedServer()


@pytest_asyncio.fixture
async def client(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    transport = httpx.MockTransport(server.handle)
    async with remotegpu.AsyncClient("http://test", "rgs_x", transport=transport, max_retries=0) as made:
        yield made
