"""Attempts as containers, where the engine answers what engines should not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from remotegpu_agent.docker_client import EngineError
from remotegpu_agent.docker_runtime import DockerRuntime
from remotegpu_agent.settings import Settings
from remotegpu_agent.tasks import docker_tasks
from remotegpu_agent.tasks.folders import Folder


class StubbornEngine:
    """Refuses to wait a few times; the container runs until then."""

    def __init__(self, *, refusals: int) -> None:
        self.engine = self
        self.refusals = refusals
        self.asked = 0

    async def wait_container(self, name: str) -> None:
        self.asked += 1
        if self.asked <= self.refusals:
            raise EngineError(500, "out of file descriptors")
        raise EngineError(404, "no such container")

    async def inspect_container(self, name: str) -> dict[str, Any]:
        if self.asked <= self.refusals:
            return {"State": {"Status": "running", "Running": True}}
        raise EngineError(404, "no such container")


def test_engine_that_fails_to_wait_has_not_seen_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_tasks, "ASK_AGAIN_S", 0.01)
    engine = StubbornEngine(refusals=3)
    tasks = docker_tasks.DockerTasks(cast("Settings", None), "host-1", cast("DockerRuntime", engine))
    asyncio.run(asyncio.wait_for(tasks.wait_end(Folder(tmp_path, "att-1")), 10))
    assert engine.asked == 4
