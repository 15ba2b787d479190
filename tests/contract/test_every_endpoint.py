"""SDK and server agree: every method of the client works on the real app; every endpoint has one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI

import remotegpu
from remotegpu.testing import asgi_client
from remotegpu.types import agent as wire
from remotegpu.types.hosts import GpuMetrics, HostMetrics, RuntimeKind
from remotegpu_server.testing import PASSWORD, Actors

GIB = 2**30


class Recorder:
    """The app, noting which routes answered, and clients, noting which methods were called."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.routes: set[tuple[str, str]] = set()
        self.methods: set[str] = set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)
        self.routes.add((scope["method"], scope["route"].path))

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
        self._methods.add(f"{self._name}.{method}")
        return getattr(self._resource, method)


RESOURCES = frozenset(
    name for name, value in vars(remotegpu.AsyncClient).items() if type(value).__name__ == "cached_property"
)


def all_methods() -> set[str]:
    client = remotegpu.AsyncClient("http://remotegpu.test", "")
    return {
        f"{name}.{method}"
        for name in RESOURCES
        for method, value in vars(type(getattr(client, name))).items()
        if inspect.isfunction(value) and not method.startswith("_")
    }


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


@pytest.fixture
def recorder(app: FastAPI) -> Recorder:
    return Recorder(app)


async def test_every_method_works_and_every_endpoint_has_one(recorder: Recorder, actors: Actors) -> None:
    root = await actors.admin()
    hub = recorder.client(await actors.hub())
    anonymous = recorder.client()
    await check_health(anonymous)
    admin = recorder.client((await anonymous.auth.login(username="root", password=PASSWORD)).secret)
    assert (await admin.me.get()).user.id == root.id
    await check_customers(admin)
    await check_users(admin, anonymous, hub)
    await check_tokens(admin, recorder)
    await check_images(admin)
    agent = await join_host(admin, recorder)
    user = recorder.client((await actors.user("ada")).secret)
    await check_limits_and_capacity(admin, user)
    await check_environments(admin, user, agent)
    await check_hosts(admin)
    events = await admin.events.list(subject_type="environment", limit=2)
    assert len([event async for event in events]) > 2
    await admin.auth.logout()
    with pytest.raises(remotegpu.TokenInvalid):
        await admin.me.get()

    # A stream has no end, and this transport hands over whole answers: see test_event_stream.py.
    assert recorder.methods == all_methods() - {"events.stream"}
    assert recorder.routes == routes_of(recorder.app)


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}


async def check_health(anonymous: Any) -> None:
    await anonymous.health.live()
    await anonymous.health.ready()
    assert "# HELP" in await anonymous.health.metrics()


async def check_customers(admin: Any) -> None:
    made = await admin.customers.create(name="physics", display_name="Physics")
    assert await admin.customers.get("physics") == made
    assert (await admin.customers.update(made.id, display_name="Lab")).display_name == "Lab"
    assert (await admin.customers.suspend("physics")).status == "suspended"
    assert (await admin.customers.resume("physics")).status == "active"
    assert "physics" in {customer.name async for customer in await admin.customers.list(limit=1)}


async def check_users(admin: Any, anonymous: Any, hub: Any) -> None:
    made = await admin.users.create(username="grace", customer="physics", email="grace@example.org")
    assert made.one_time_password
    assert (await admin.users.get("grace")).customer_name == "physics"
    assert (await admin.users.update("grace", role="owner", display_name="Grace")).role == "owner"
    assert (await admin.users.suspend("grace")).status == "suspended"
    assert (await admin.users.resume("grace")).status == "active"
    password = (await admin.users.reset_password(made.user.id)).one_time_password
    assert password != made.one_time_password
    verified = await hub.auth.verify(username="grace", password=password, client_address="192.0.2.7")
    assert verified.username == "grace"
    grace = hub.on_behalf_of("grace")
    assert (await grace.me.get()).user.username == "grace"
    await grace_changes_password(admin, anonymous, password)
    assert "grace" in {user.username async for user in await admin.users.list(limit=1)}


async def grace_changes_password(admin: Any, anonymous: Any, password: str) -> None:
    session = await anonymous.auth.login(username="grace", password=password, expires_in_s=3600)
    grace = type(admin)(
        asgi_client(admin._client._transport._http._transport.app, session.secret), admin._methods
    )
    await grace.me.change_password(current_password=password, new_password="staple correct horse")
    with pytest.raises(remotegpu.InvalidCredentials):
        await anonymous.auth.login(username="grace", password=password)


async def check_tokens(admin: Any, recorder: Recorder) -> None:
    made = await admin.tokens.create(name="laptop", scopes=["read"], expires_in_s=3600)
    reader = recorder.client(made.secret)
    assert (await reader.me.get()).token.name == "laptop"
    with pytest.raises(remotegpu.Forbidden):
        await reader.tokens.create(name="more")
    assert made.token.id in {token.id async for token in await admin.tokens.list()}
    await admin.tokens.delete(made.token.id)
    with pytest.raises(remotegpu.TokenInvalid):
        await reader.me.get()


async def check_images(admin: Any) -> None:
    made = await admin.images.create(name="base", reference="registry.example.org/base:1", runtime="docker")
    assert await admin.images.get("base") == made
    assert (await admin.images.update("base", description="JupyterLab")).description == "JupyterLab"
    assert [image.name async for image in await admin.images.list()] == ["base"]


async def join_host(admin: Any, recorder: Recorder) -> Agent:
    await admin.hosts.create(name="one", labels={"rack": "a1"})
    enrollment = await admin.hosts.create_enrollment_token("one", expires_in_s=600)
    body = wire.Enroll(hostname="one", machine_id="m" * 32, agent_version="test")
    enrolled = await recorder.client(enrollment.secret).agent.enroll(body)
    assert enrolled.host_name == "one"
    agent = Agent(recorder.client(enrolled.credential))
    await agent.register()
    assert (await admin.hosts.get("one")).ready
    return agent


async def check_limits_and_capacity(admin: Any, user: Any) -> None:
    quota = await admin.quotas.set("user", "ada", limits={"gpus": 1, "environments": None})
    assert {line.resource: line.limit for line in quota.lines if line.subject == "user"}["gpus"] == 1
    assert (await admin.quotas.get("user", "ada")).lines == quota.lines
    assert any(line.resource == "gpus" and line.limit == 1 for line in (await user.quotas.mine()).lines)
    assert [model.free for model in (await user.capacity.get()).gpu_models] == [1]
    assert [
        gpu.simulated async for gpu in await user.gpus.list(host="one", model="A100-80GB", free=True)
    ] == [True]
    assert (await user.placements.explain(image="base", gpus=1)).outcome == "starts_now"


async def check_environments(admin: Any, user: Any, agent: Agent) -> None:
    made = await user.environments.create(name="work", image="base", gpus=1, env={"A": "b"}, queue=False)
    assert made.status == "starting"
    with pytest.raises(remotegpu.QuotaExceeded) as refused:
        await user.environments.create(name="more", image="base", gpus=1)
    assert refused.value.data["resource"] == "gpus"
    await agent.report(wire.Observed.RUNNING, address="http://10.0.0.1:8888")
    ready = await user.environments.wait_ready(made.id, timeout_s=5, progress=False)
    assert ready.address == "http://10.0.0.1:8888"
    assert [found.id async for found in await user.environments.list(name="work", status="running")] == [
        made.id
    ]
    usage = await user.environments.usage(made.id)
    assert [gpu.simulated for gpu in usage.gpus] == [True]
    logs, _ = await asyncio.gather(
        user.environments.logs(made.id, tail_lines=5), agent.answer_one_log_request()
    )
    assert logs.text == "hello\n"

    assert (await user.environments.stop(made.id)).status == "stopping"
    await agent.report(wire.Observed.ABSENT)
    assert (await user.environments.wait_stopped(made.id, timeout_s=5)).status == "stopped"
    assert (await user.environments.start(made.id, gpus=0)).status == "starting"
    await user.environments.stop(made.id)
    assert (await admin.environments.release(made.id)).status == "stopped"
    await user.environments.delete(made.id)
    assert (await user.environments.get(made.id)).status == "deleted"
    assert (await user.environments.list()).items == []


async def check_hosts(admin: Any) -> None:
    assert (await admin.hosts.update("one", labels={"rack": "b2"})).labels["rack"] == "b2"
    assert (await admin.hosts.cordon("one")).cordoned
    assert not (await admin.hosts.uncordon("one")).cordoned
    await admin.hosts.create(name="never-used")
    await admin.hosts.delete("never-used")
    assert [host.name async for host in await admin.hosts.list()] == ["one"]
