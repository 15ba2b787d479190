"""What the contract test records, and the world its journeys share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI

import remotegpu
from remotegpu.testing import asgi_client
from remotegpu.types import agent as wire
from remotegpu.types.hosts import GpuMetrics, HostMetrics, RuntimeKind
from remotegpu_server.testing import Actors, Person

GIB = 2**30
_calling: ContextVar[str | None] = ContextVar("calling", default=None)
"""The method that makes the requests of this task."""


class Recorder:
    """The app, noting which routes answered, and clients, noting which methods asked which."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.routes: set[tuple[str, str]] = set()
        self.methods: set[str] = set()
        self.asked: dict[str, set[tuple[str, str]]] = {}
        """By method, the routes that it asked."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)
        route = (scope["method"], scope["route"].path)
        self.routes.add(route)
        if (method := _calling.get()) is not None:
            self.asked.setdefault(method, set()).add(route)

    def client(self, token: str = "") -> Any:
        return _Noted(asgi_client(self, token), self.methods)


class _Noted:
    """A client whose calls are noted as ``resource.method``."""

    def __init__(self, client: remotegpu.AsyncClient, methods: set[str]) -> None:
        self._client, self._methods = client, methods

    def __getattr__(self, name: str) -> Any:
        resource = getattr(self._client, name)
        return _NotedResource(name, resource, self._methods) if name in RESOURCES else resource


class _NotedResource:
    def __init__(self, name: str, resource: object, methods: set[str]) -> None:
        self._name, self._resource, self._methods = name, resource, methods

    def __getattr__(self, method: str) -> Any:
        name = f"{self._name}.{method}"
        self._methods.add(name)
        found = getattr(self._resource, method)
        if not inspect.iscoroutinefunction(found):
            return found

        @functools.wraps(found)
        async def noted(*args: Any, **fields: Any) -> Any:
            before = _calling.set(name)
            try:
                return await found(*args, **fields)
            finally:
                _calling.reset(before)

        return noted


RESOURCES = frozenset(
    name for name, value in vars(remotegpu.AsyncClient).items() if type(value).__name__ == "cached_property"
)


def inventory() -> wire.Inventory:
    gpu = wire.InventoryGpu(
        uuid="GPU-contract-0",
        index=0,
        model="A100-80GB",
        product="Simulated A100",
        memory_total_bytes=80 * GIB,
        pci_bus_id=None,
        mig_enabled=None,
        numa_node=None,
        simulated=True,
    )
    return wire.Inventory(
        hostname="one",
        os="Debian 12",
        kernel="6.1",
        cpus=16,
        memory_bytes=64 * GIB,
        disk_total_bytes=500 * GIB,
        gpus=[gpu],
        driver_version=None,
        cuda_version=None,
        runtime=RuntimeKind.DOCKER,
        runtime_healthy=True,
        runtime_detail="20.10",
        images=[],
        address="10.0.0.1",
        shared_home=None,
        metrics_address="10.0.0.1:9835",
    )


def heartbeat(epoch: int) -> wire.Heartbeat:
    metrics = GpuMetrics(utilization_percent=12.5, memory_used_bytes=GIB)
    return wire.Heartbeat(
        epoch=epoch,
        sampled_at=datetime.now(UTC),
        runtime_healthy=True,
        runtime_detail="20.10",
        host=HostMetrics(cpu_percent=3.0),
        gpus=[wire.HeartbeatGpu(uuid="GPU-contract-0", metrics=metrics)],
        workloads=[],
        observed=[],
    )


class Agent:
    """A host's agent, as far as the server can tell."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.epoch = 0

    async def register(self) -> None:
        body = wire.SessionCreate(boot_id="boot-1", agent_version="test", inventory=inventory(), workloads=[])
        self.epoch = (await self.client.agent.create_session(body)).epoch
        reply = await self.client.agent.heartbeat(heartbeat(self.epoch))
        assert reply.next_in_s > 0

    async def desired(self) -> wire.DesiredWorkloads:
        found = await self.client.agent.workloads(epoch=self.epoch, wait_s=0)
        assert isinstance(found, wire.DesiredWorkloads)
        return found

    async def report(self, observed: wire.Observed, **fields: Any) -> None:
        """Say the same of every workload there is."""
        for workload in (await self.desired()).workloads:
            body = wire.Observation(
                epoch=self.epoch,
                workload_id=workload.id,
                generation=workload.generation,
                observed=observed,
                **fields,
            )
            await self.client.agent.observe(workload.id, body)

    async def answer_one_log_request(self) -> None:
        """As an agent does it: the request comes over the long poll."""
        found = await self.desired()
        while not found.log_requests:
            found = await self.client.agent.workloads(epoch=self.epoch, since=found.revision, wait_s=10)
        answer = wire.LogAnswer(epoch=self.epoch, text="hello\n", truncated=False)
        await self.client.agent.answer_logs(found.log_requests[0].id, answer)


@dataclass
class World:
    """Everybody whom the journeys need, on one app. ``agent``: once ``journey_hosts`` joined."""

    recorder: Recorder
    actors: Actors
    root: Person
    admin: Any
    """Client of the platform admin."""
    hub: Any
    """Client with the hub's service token."""
    anonymous: Any
    user: Any
    """Client of the user ``ada``, a member of the customer ``default``."""
    agent: Agent | None = None
