"""Unused environments: the judgement, and the ladder notice, warning, stop."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu.types.environments import IdlePolicy
from remotegpu_server.environments import stop_loop
from remotegpu_server.environments.service.idle import Measured, in_use
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors

QUIET: dict[str, Any] = {
    "gpus": 1,
    "gpu_percent": 0.0,
    "cpu_percent": 0.2,
    "connections": 0,
    "kernel_idle_s": None,
}


@pytest.mark.parametrize(
    ("changes", "policy", "expected"),
    [
        ({}, {}, False),
        ({"gpu_percent": 5.0}, {}, True),
        ({"gpu_percent": 4.9}, {}, False),
        ({"gpu_percent": 4.9}, {"gpu_below_percent": 1}, True),
        ({"gpu_percent": None}, {}, None),
        ({"gpus": 0, "gpu_percent": None}, {}, False),
        ({"cpu_percent": 80.0}, {}, True),
        ({"cpu_percent": None}, {}, None),
        ({"connections": 1}, {}, True),
        ({"connections": None}, {}, None),
        ({"connections": 1}, {"count_connections": False}, False),
        ({"connections": None}, {"count_connections": False}, False),
        ({"kernel_idle_s": 3.0}, {}, True),
        ({"kernel_idle_s": 3600.0}, {}, False),
        ({"gpu_percent": 90.0, "cpu_percent": None, "connections": None}, {}, True),
    ],
)
def test_environment_is_unused_only_when_every_signal_was_measured_and_is_quiet(
    changes: dict[str, Any], policy: dict[str, Any], expected: bool | None
) -> None:
    assert in_use(IdlePolicy(after_s=60, **policy), Measured(**QUIET | changes)) is expected


async def beat(agent: HollowAgent, key: str, *, gpu: float | None = 0.0, **measured: Any) -> None:
    """One heartbeat with what was measured of one environment and its host's GPUs."""
    workload = {
        "workload_id": key,
        "cpu_percent": 0.1,
        "memory_used_bytes": 1,
        "gpu_memory_bytes": {},
        "connections": 0,
    } | measured
    gpus = [
        {"uuid": one["uuid"], "metrics": {"utilization_percent": gpu, "utilization_max_percent": gpu}}
        for one in agent.gpus
    ]
    answer = await agent.heartbeat(workloads=[workload], gpus=gpus)
    assert answer.status_code == 200, answer.text


async def unused_since(app: FastAPI, key: str, seconds: float) -> None:
    async with app.state.database.sessions() as db:
        await db.execute(
            text(
                "UPDATE environments SET idle_since = idle_since - make_interval(secs => :s),"
                " idle_stop_at = idle_stop_at - make_interval(secs => :s) WHERE id = :id"
            ),
            {"id": key, "s": seconds},
        )
        await db.commit()


async def forget_samples(app: FastAPI) -> None:
    async with app.state.database.sessions() as db:
        await db.execute(text("DELETE FROM host_samples"))
        await db.commit()


async def begin(fleet: Fleet, agent: HollowAgent, headers: dict[str, str]) -> str:
    made = await fleet.create(headers, gpus=1, idle={"after_s": 3600})
    await agent.obey()
    return str(made.json()["id"])


async def ladder(client: httpx.AsyncClient, headers: dict[str, str], key: str) -> list[str]:
    found = await client.get(
        "/v1/events", headers=headers, params={"subject_type": "environment", "subject_id": key, "limit": 200}
    )
    kinds = [event["kind"].removeprefix("environment.") for event in found.json()["items"]]
    return [kind for kind in kinds if kind not in ("status", "created")]


async def test_unused_environment_is_noticed_warned_and_stopped(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    key = await begin(fleet, agent, ada.headers)
    await beat(agent, key)
    await stop_loop.find_unused(work)
    assert (await fleet.get(ada.headers, key))["idle_since"] is not None
    await unused_since(app, key, 1900)
    for _ in range(2):
        await stop_loop.find_unused(work)
    assert await ladder(client, ada.headers, key) == ["idle_notice"]
    assert (await fleet.get(ada.headers, key))["stops_at"] is None
    await unused_since(app, key, 1900)
    for _ in range(2):
        await stop_loop.find_unused(work)
    assert await ladder(client, ada.headers, key) == ["idle_notice", "idle_warning"]
    assert (await fleet.get(ada.headers, key))["stops_at"] is not None
    await unused_since(app, key, 901)
    await stop_loop.find_unused(work)
    stopping = await fleet.get(ada.headers, key)
    assert (stopping["status"], stopping["reason"]) == ("stopping", "idle")
    assert await ladder(client, ada.headers, key) == ["idle_notice", "idle_warning", "ended"]
    await agent.obey()
    assert (await fleet.get(ada.headers, key))["reason"] == "idle"


@pytest.mark.parametrize(
    "measured",
    [
        {"gpu": 97.0},
        {"gpu": None},
        {"connections": 2},
        {"connections": None},
        {"cpu_percent": 95.0},
        {"cpu_percent": None},
        {"kernel_idle_s": 5.0},
    ],
)
async def test_warned_environment_that_is_used_or_cannot_be_measured_is_never_stopped(
    fleet: Fleet,
    actors: Actors,
    client: httpx.AsyncClient,
    app: FastAPI,
    work: Work,
    measured: dict[str, Any],
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    key = await begin(fleet, agent, ada.headers)
    await beat(agent, key)
    await stop_loop.find_unused(work)
    await unused_since(app, key, 3700)
    await stop_loop.find_unused(work)
    await unused_since(app, key, 3700)
    await beat(agent, key, **measured)
    await stop_loop.find_unused(work)
    found = await fleet.get(ada.headers, key)
    assert (found["status"], found["idle_since"], found["stops_at"]) == ("running", None, None)
    assert await ladder(client, ada.headers, key) == ["idle_warning", "in_use"]


async def test_environment_without_any_measurement_is_never_stopped(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    key = await begin(fleet, agent, ada.headers)
    await beat(agent, key)
    await stop_loop.find_unused(work)
    await unused_since(app, key, 10**6)
    await forget_samples(app)
    await stop_loop.find_unused(work)
    found = await fleet.get(ada.headers, key)
    assert (found["status"], found["idle_since"]) == ("running", None)


async def test_extension_takes_an_announced_idle_stop_back(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    key = await begin(fleet, agent, ada.headers)
    await beat(agent, key)
    await stop_loop.find_unused(work)
    await unused_since(app, key, 3700)
    await stop_loop.find_unused(work)
    assert (await fleet.get(ada.headers, key))["stops_at"] is not None
    answer = await client.post(f"/v1/environments/{key}:extend", headers=ada.headers, json={"by_s": 3600})
    assert (answer.status_code, answer.json()["stops_at"]) == (200, None)
    await stop_loop.find_unused(work)
    assert (await fleet.get(ada.headers, key))["status"] == "running"


async def test_policy_of_zero_seconds_means_never(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    assert (await fleet.create(ada.headers, "off", idle={"after_s": 0})).json()["idle"] is None
    usual = (await fleet.create(ada.headers, "usual")).json()["idle"]
    assert usual == {"after_s": 7200.0, "gpu_below_percent": 5.0, "count_connections": True}
