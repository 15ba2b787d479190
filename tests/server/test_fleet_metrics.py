"""What the leading server tells Prometheus of the fleet."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet
from prometheus_client.parser import text_string_to_metric_families

from remotegpu_server.metrics import fleet as exposition
from remotegpu_server.testing import Actors


async def told(app: FastAPI) -> dict[str, list[Any]]:
    async with app.state.database.sessions() as db:
        text = "".join([piece async for piece in exposition.exposed(db)])
    families = list(text_string_to_metric_families(text))
    assert len({one.name for one in families}) == len(families), "the lines of a metric stand together"
    return {sample.name: one.samples for one in families for sample in one.samples}


async def test_gpus_have_the_usual_names_and_labels_and_no_value_that_nobody_measured(
    fleet: Fleet, app: FastAPI
) -> None:
    agent = await fleet.host("one", gpus=1)
    metrics = {
        "utilization_percent": 50.0,
        "memory_used_bytes": 2**30,
        "memory_total_bytes": 4 * 2**30,
        "energy_j": 12.5,
        "throttle_reasons": ["power_cap", "sw_thermal"],
    }
    await agent.heartbeat(gpus=[{"uuid": "GPU-one-0", "metrics": metrics}])
    found = await told(app)
    (load,) = found["DCGM_FI_DEV_GPU_UTIL"]
    assert (load.value, load.labels) == (
        50.0,
        {
            "gpu": "0",
            "UUID": "GPU-one-0",
            "device": "nvidia0",
            "modelName": "NVIDIA A100-80GB",
            "Hostname": "one",
            "simulated": "true",
        },
    )
    values = {name: samples[0].value for name, samples in found.items() if name.startswith("DCGM")}
    assert values == {
        "DCGM_FI_DEV_GPU_UTIL": 50.0,
        "DCGM_FI_DEV_FB_USED": 1024.0,
        "DCGM_FI_DEV_FB_FREE": 3072.0,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_total": 12500.0,
        "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": 36.0,
    }
    assert found["remotegpu_host_cpu_ratio"][0].value == 0.05
    assert "remotegpu_host_memory_used_bytes" not in found


async def test_fleet_counts_what_is_held_idle_free_and_waited_for(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent = await fleet.host("one", gpus=2)
    await fleet.host("two", gpus=1)
    marked = {"labels": {"which": "one"}}
    await fleet.client.patch("/v1/hosts/one", headers=fleet.admin, json=marked)
    ada = await actors.user("ada")
    await fleet.create(ada.headers, gpus=1, host_labels={"which": "one"})
    waits = await fleet.create(ada.headers, "waits", gpus=2)
    assert waits.json()["status"] == "pending", waits.text
    await agent.obey()
    idle = {"utilization_percent": 0.0}
    await agent.heartbeat(gpus=[{"uuid": one["uuid"], "metrics": idle} for one in agent.gpus])
    found = await told(app)
    gpus = {one.labels["state"]: one.value for one in found["remotegpu_gpus"]}
    assert gpus == {"held": 1.0, "free": 2.0}
    held_where = {one.labels["Hostname"] for one in found["remotegpu_gpu_held_ratio"]}
    assert held_where == {"one"}, found
    assert [one.value for one in found["remotegpu_gpus_held_idle"]] == [1.0]
    assert [one.value for one in found["remotegpu_gpu_fragmentation_ratio"]] == [0.5]
    waiting = {one.labels["kind"]: one.value for one in found["remotegpu_queue_length"]}
    assert waiting == {"environment": 1.0, "task": 0.0}
    assert {one.labels["connection"]: one.value for one in found["remotegpu_hosts"]} == {"online": 2.0}
    assert found["remotegpu_starts_last_hour"][0].value == 1.0


async def test_server_that_does_not_lead_tells_of_itself_alone(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("one")
    answer = await client.get("/metrics", headers=fleet.admin)
    assert answer.status_code == 200
    assert "remotegpu_http_request_seconds" in answer.text
    assert "remotegpu_hosts" not in answer.text
