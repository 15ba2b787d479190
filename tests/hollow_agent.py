"""An agent without a host: speaks the whole agent protocol to the app, and does what it is told.

It reports honestly unless a test makes it lie: it shows what the server does with agents, never what a
real agent does.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

GIB = 2**30


def gpu(uuid: str, *, index: int = 0, model: str = "A100-80GB", simulated: bool = True) -> dict[str, Any]:
    """One GPU of an inventory."""
    return {
        "uuid": uuid,
        "index": index,
        "model": model,
        "product": f"NVIDIA {model}",
        "memory_total_bytes": 80 * GIB,
        "pci_bus_id": None,
        "mig_enabled": None,
        "numa_node": None,
        "simulated": simulated,
    }


@dataclass
class HollowAgent:
    """One agent of one host. ``machine`` is what its host has."""

    client: httpx.AsyncClient
    host_id: str
    host_name: str
    credential: str
    gpus: list[dict[str, Any]]
    cpus: int = 32
    memory_bytes: int = 128 * GIB
    runtime: str = "docker"
    boot_id: str = "boot-1"
    runtime_healthy: bool = True
    shared_home: str | None = None
    images: list[str] = field(default_factory=list)
    epoch: int = 0
    revision: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.credential}"}

    async def register(
        self, workloads: list[dict[str, Any]] | None = None, *, previous_epoch: int | None = None
    ) -> httpx.Response:
        """A new session. Without ``previous_epoch`` it looks like another agent with the same credential."""
        answer = await self.client.post(
            "/v1/agent/sessions",
            headers=self.headers,
            json={
                "boot_id": self.boot_id,
                "agent_version": "0",
                "previous_epoch": previous_epoch,
                "inventory": {
                    "hostname": self.host_name,
                    "os": "Linux",
                    "kernel": "6",
                    "cpus": self.cpus,
                    "memory_bytes": self.memory_bytes,
                    "disk_total_bytes": 10**12,
                    "gpus": self.gpus,
                    "driver_version": None,
                    "cuda_version": None,
                    "runtime": self.runtime,
                    "runtime_healthy": self.runtime_healthy,
                    "runtime_detail": "24.0",
                    "images": self.images,
                    "address": "192.0.2.1",
                    "shared_home": self.shared_home,
                },
                "workloads": workloads or [],
            },
        )
        if answer.status_code == 201:
            self.epoch = answer.json()["epoch"]
        return answer

    async def heartbeat(self, **changes: Any) -> httpx.Response:
        metrics = {"utilization_percent": 50.0, "memory_used_bytes": GIB}
        body: dict[str, Any] = {
            "epoch": self.epoch,
            "sampled_at": "2026-11-24T00:00:00Z",
            "runtime_healthy": self.runtime_healthy,
            "runtime_detail": "24.0",
            "host": {"cpu_percent": 5.0},
            "gpus": [{"uuid": one["uuid"], "metrics": metrics} for one in self.gpus],
            "workloads": [],
            "observed": [],
        }
        return await self.client.post("/v1/agent/heartbeat", headers=self.headers, json=body | changes)

    async def poll(self, *, since: int | None = None, wait_s: float = 0) -> httpx.Response:
        given = {} if since is None else {"since": since}
        return await self.client.get(
            "/v1/agent/workloads",
            headers=self.headers,
            params={"epoch": self.epoch, "wait_s": wait_s, **given},
        )

    async def desired(self) -> dict[str, dict[str, Any]]:
        """The desired set by workload id."""
        answer = await self.poll()
        assert answer.status_code == 200, answer.text
        self.revision = answer.json()["revision"]
        return {one["id"]: one for one in answer.json()["workloads"]}

    async def observe(
        self, workload_id: str, observed: str, *, generation: int = 1, epoch: int | None = None, **more: Any
    ) -> httpx.Response:
        return await self.client.put(
            f"/v1/agent/workloads/{workload_id}/observed",
            headers=self.headers,
            json={
                "workload_id": workload_id,
                "generation": generation,
                "observed": observed,
                "epoch": self.epoch if epoch is None else epoch,
                **more,
            },
        )

    async def claim(
        self, *, request_id: str | None = None, most: int = 100, wait_s: float = 0
    ) -> list[dict[str, Any]]:
        """Attempts for this host, as the answer lists them."""
        answer = await self.client.post(
            "/v1/agent/tasks/claim",
            headers=self.headers,
            json={
                "epoch": self.epoch,
                "request_id": request_id or f"req-{uuid.uuid4()}",
                "max_attempts": most,
                "wait_s": wait_s,
            },
        )
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["attempts"]
        return found

    async def attempt(self, attempt_id: str, verb: str, **body: Any) -> httpx.Response:
        """One write about an attempt: accept, start, renew, progress, complete or release."""
        return await self.client.post(
            f"/v1/agent/attempts/{attempt_id}/{verb}",
            headers=self.headers,
            json={"epoch": self.epoch} | body,
        )

    async def complete(self, attempt_id: str, **result: Any) -> httpx.Response:
        """A result; without more, success."""
        body = {"status": "succeeded", "exit_code": 0, "reason": "succeeded"} | result
        return await self.attempt(attempt_id, "complete", **body)

    async def obey(self) -> None:
        """Make everything as desired, and report it."""
        for workload in (await self.desired()).values():
            run = workload["desired"] == "running"
            more = {"address": "http://192.0.2.1:40000"} if run else {}
            answer = await self.observe(
                workload["id"], "running" if run else "absent", generation=workload["generation"], **more
            )
            assert answer.status_code == 204, answer.text


@dataclass
class Fleet:
    """Makes hosts with hollow agents, and what people need beside them."""

    client: httpx.AsyncClient
    admin: dict[str, str]

    async def image(self, name: str = "base", *, runtime: str = "docker") -> None:
        answer = await self.client.post(
            "/v1/images",
            headers=self.admin,
            json={"name": name, "reference": f"example.org/{name}:1", "runtime": runtime},
        )
        assert answer.status_code == 201, answer.text

    async def new_host(self, name: str) -> str:
        """An enrolment token for a new host."""
        answer = await self.client.post("/v1/hosts", headers=self.admin, json={"name": name})
        assert answer.status_code == 201, answer.text
        return await self.enrollment(name)

    async def enrollment(self, host: str) -> str:
        answer = await self.client.post(
            f"/v1/hosts/{host}/enrollment-tokens", headers=self.admin, json={"expires_in_s": 600}
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["secret"])

    async def enroll(self, token: str) -> httpx.Response:
        return await self.client.post(
            "/v1/agent/enroll",
            headers={"Authorization": f"Bearer {token}"},
            json={"hostname": "box", "machine_id": "machine-1", "agent_version": "0"},
        )

    async def host(
        self, name: str, *, gpus: int = 1, model: str = "A100-80GB", **machine: Any
    ) -> HollowAgent:
        """A registered host with that many GPUs of one model."""
        answer = await self.enroll(await self.new_host(name))
        assert answer.status_code == 201, answer.text
        agent = HollowAgent(
            client=self.client,
            host_id=answer.json()["host_id"],
            host_name=name,
            credential=answer.json()["credential"],
            gpus=[gpu(f"GPU-{name}-{index}", index=index, model=model) for index in range(gpus)],
            **machine,
        )
        registered = await agent.register()
        assert registered.status_code == 201, registered.text
        return agent

    async def limit(self, subject: str, subject_id: str, **limits: int | None) -> None:
        answer = await self.client.put(
            f"/v1/quotas/{subject}/{subject_id}", headers=self.admin, json={"limits": limits}
        )
        assert answer.status_code == 200, answer.text

    async def create(self, headers: dict[str, str], name: str = "default", **spec: Any) -> httpx.Response:
        return await self.client.post(
            "/v1/environments", headers=headers, json={"name": name, "image": "base", **spec}
        )

    async def get(self, headers: dict[str, str], environment_id: str) -> dict[str, Any]:
        answer = await self.client.get(f"/v1/environments/{environment_id}", headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def act(
        self, headers: dict[str, str], environment_id: str, verb: str, **body: Any
    ) -> httpx.Response:
        return await self.client.post(
            f"/v1/environments/{environment_id}:{verb}",
            headers=headers,
            json=body if verb == "start" else None,
        )

    async def gpus_free(self) -> int:
        answer = await self.client.get("/v1/capacity", headers=self.admin)
        return sum(one["free"] for one in answer.json()["gpu_models"])
