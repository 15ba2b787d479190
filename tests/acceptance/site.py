"""What the acceptance checks run on: PostgreSQL, two server processes, a real agent, real people.

Everything goes through the public API by the SDK; no row is made by hand.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from cryptography.fernet import Fernet
from hub.stack import PASSWORD, QUICK, Agent, until

import remotegpu
from remotegpu.types import agent as wire
from remotegpu.types.hosts import HostMetrics, RuntimeKind
from remotegpu_server.db.engine import connect
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import LiveServer

T = TypeVar("T")
GIB = 2**30
SMALL: dict[str, Any] = {"cpus": 0.1, "memory_bytes": 2**28}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Person:
    """A user with a session, and a client on each server."""

    name: str
    token: str
    clients: tuple[remotegpu.Client, ...]

    @property
    def client(self) -> remotegpu.Client:
        return self.clients[0]


class Site:
    """Two servers on one database, and one host with four simulated GPUs that runs processes."""

    def __init__(self, folder: Path, database_url: str, python: str) -> None:
        self.folder, self.database_url = folder, database_url
        (folder / "key").write_text(Fernet.generate_key().decode())
        self.servers: list[LiveServer] = []
        for number in range(2):
            home = folder / f"server-{number}"
            home.mkdir()
            if self.servers:  # a hub token file that is gone would be made again, and the old one end
                shutil.copy(self.servers[0].folder / "hub-token", home / "hub-token")
            server = LiveServer(database_url=database_url, folder=home)
            server.start(REMOTEGPU_SECRET_KEY_FILE=str(folder / "key"))
            self.servers.append(server)
        self._clients: list[remotegpu.Client] = []
        self.sdk_agents: list[SdkAgent] = []
        admin = self.sign_in("admin", self.servers[0].admin_password)
        self.admin, self.admins = admin.client, admin.clients
        self.admin.images.create(
            name="quick",
            reference="process/quick:latest",
            runtime="process",
            command=[python, str(QUICK)],
        )
        self.admin.images.create(name="base", reference="registry.example.org/base:1")
        self.agent = Agent(self.servers[0].url, self.admin, folder, "gpu-host", "4xA100-80GB")
        self.host = self.admin.hosts.get("gpu-host")

    def client(self, token: str, server: int = 0) -> remotegpu.Client:
        """A client of one of the servers; closed with the site."""
        made = remotegpu.Client(self.servers[server].url, token)
        self._clients.append(made)
        return made

    def sign_in(self, username: str, password: str = PASSWORD) -> Person:
        token = self.client("").auth.login(username=username, password=password).secret
        return Person(username, token, tuple(self.client(token, number) for number in (0, 1)))

    def customer(self) -> str:
        return self.admin.customers.create(name=f"customer-{next(_numbers)}").name

    def user(self, customer: str | None = None, *, role: str = "member", **limits: int) -> Person:
        name = f"user{next(_numbers)}"
        self.admin.users.create(username=name, password=PASSWORD, customer=customer, role=role)
        if limits:
            self.admin.quotas.set("user", name, limits=limits)
        return self.sign_in(name)

    def end(self, environment_id: str) -> None:
        """Stop and delete it, and wait for the proof."""
        self.admin.environments.delete(environment_id)
        until(f"{environment_id} is gone", lambda: environment_id not in self.live())

    def live(self) -> dict[str, str]:
        """Status by environment, of all that is not deleted."""
        return {one.id: one.status for one in self.admin.environments.list(limit=200)}

    def free_again(self) -> None:
        """What a test left is gone, and only the real host takes work."""
        for one in self.admin.environments.list(limit=200):
            self.admin.environments.delete(one.id)
        for agent in self.sdk_agents:
            operational = self.admin.hosts.get(agent.name).operational
            if operational == "available":
                self.admin.hosts.cordon(agent.name)
            if operational != "retired":
                agent.beat()
                agent.obey()
        until("nothing is left", lambda: not self.live(), timeout_s=60)
        self.sdk_agents.clear()

    def rows(self, statement: str, **given: object) -> list[tuple[Any, ...]]:
        """Read the database: to compare what the API says with what is there, never to write."""
        engine = sa.create_engine(self.database_url)
        try:
            with engine.connect() as connection:
                connection.execute(sa.text("SET TRANSACTION READ ONLY"))
                return [tuple(row) for row in connection.execute(sa.text(statement), given)]
        finally:
            engine.dispose()

    def assert_invariants(self) -> None:
        asyncio.run(self._assert_invariants())

    async def _assert_invariants(self) -> None:
        database = connect(self.database_url, pool_size=1)
        try:
            async with database.sessions() as db:
                await assert_invariants(db)
        finally:
            await database.close()

    def stop(self) -> None:
        self.agent.process.stop()
        for client in self._clients:
            client.close()
        for server in self.servers:
            server.stop()


def at_once(calls: Sequence[Callable[[], T]]) -> tuple[list[T], list[remotegpu.errors.ApiError]]:
    """All of them behind one barrier: what succeeded, and the refusals."""
    barrier = threading.Barrier(len(calls))
    done: list[T] = []
    refused: list[remotegpu.errors.ApiError] = []

    def run(call: Callable[[], T]) -> None:
        barrier.wait(20)
        try:
            done.append(call())
        except remotegpu.errors.ApiError as error:
            refused.append(error)

    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(run, call) for call in calls]:
            future.result(60)
    return done, refused


class SdkAgent:
    """A host whose agent is this test, speaking the protocol through the SDK: for what a process on this
    machine cannot show, such as keys in containers, or an agent that lies.
    """

    def __init__(self, site: Site, *, gpus: int = 1, runtime: RuntimeKind = RuntimeKind.DOCKER) -> None:
        self.name = f"host-{next(_numbers)}"
        self.gpus = [f"GPU-{self.name}-{index}" for index in range(gpus)]
        self.runtime = runtime
        site.admin.hosts.create(name=self.name, labels={"only": self.name})
        token = site.admin.hosts.create_enrollment_token(self.name).secret
        enrolled = site.client(token).agent.enroll(
            wire.Enroll(hostname=self.name, machine_id=self.name, agent_version="0")
        )
        self.host_id, self.credential = enrolled.host_id, enrolled.credential
        self.client = site.client(self.credential, 1)
        self.epoch = self.client.agent.create_session(self.session()).epoch
        self.beat()
        site.sdk_agents.append(self)

    def session(self, gpus: Sequence[str] | None = None) -> wire.SessionCreate:
        """The body of a registration; ``gpus`` other than its own are a lie."""
        return wire.SessionCreate(
            boot_id="boot-1",
            agent_version="0",
            workloads=[],
            inventory=wire.Inventory(
                hostname=self.name,
                os="Linux",
                kernel="6",
                cpus=32,
                memory_bytes=128 * GIB,
                disk_total_bytes=10**12,
                gpus=[
                    wire.InventoryGpu(
                        uuid=uuid,
                        index=index,
                        model="H100-80GB",
                        product="NVIDIA H100",
                        memory_total_bytes=80 * GIB,
                        pci_bus_id=None,
                        mig_enabled=None,
                        numa_node=None,
                        simulated=True,
                    )
                    for index, uuid in enumerate(self.gpus if gpus is None else gpus)
                ],
                driver_version=None,
                cuda_version=None,
                runtime=self.runtime,
                runtime_healthy=True,
                runtime_detail="27",
                images=[],
                address="192.0.2.1",
                shared_home=None,
            ),
        )

    def heartbeat(self, **changes: Any) -> wire.Heartbeat:
        body: dict[str, Any] = {
            "epoch": self.epoch, "sampled_at": "2026-11-24T00:00:00Z", "runtime_healthy": True,
            "runtime_detail": "27", "host": HostMetrics(), "gpus": [], "workloads": [], "observed": [],
        }  # fmt: skip
        return wire.Heartbeat(**(body | changes))

    def beat(self) -> None:
        self.client.agent.heartbeat(self.heartbeat())

    def desired(self) -> wire.DesiredWorkloads:
        return self.client.agent.workloads(epoch=self.epoch, wait_s=0)

    def keys(self) -> dict[str, list[str]]:
        """Keys by environment, as one heartbeat and the read that follows it tell them."""
        self.beat()
        return {one.id: one.authorized_keys for one in self.desired().workloads if one.desired == "running"}

    def observation(self, workload_id: str, generation: int, observed: str) -> wire.Observation:
        return wire.Observation(
            epoch=self.epoch,
            workload_id=workload_id,
            generation=generation,
            observed=wire.Observed(observed),
            address="http://192.0.2.1:40000" if observed == "running" else None,
        )

    def obey(self) -> None:
        """Make everything as desired, and say so."""
        desired = self.desired()
        for one in desired.workloads:
            observed = "running" if one.desired == "running" else "absent"
            self.client.agent.observe(one.id, self.observation(one.id, one.generation, observed))
        for removal in desired.volume_removals:
            answer = wire.VolumeRemovalAnswer(epoch=self.epoch, removed=True)
            self.client.agent.answer_volume_removal(removal.id, answer)
