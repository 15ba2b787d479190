"""The payload that Docker gets, compared as a whole with what was agreed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agent_workloads import workload
from task_specs import attempt

from remotegpu_agent import container_spec

GOLDEN = Path(__file__).parent / "golden"

PLACEMENT = container_spec.Placement(
    host_id="host-1",
    epoch=7,
    image="lab/base@sha256:" + "0" * 64,
    image_user="jovyan",
    home="/srv/homes/vol-1",
    publish_address="10.0.0.5",
)


def spec(*, image_user: str = "jovyan", **changes: Any) -> dict[str, Any]:
    wanted = workload(
        command=None,
        env={"JUPYTERHUB_SERVICE_PREFIX": "/user/ada/"},
        secret_env={"JUPYTERHUB_API_TOKEN": "canary"},
        **changes,
    )
    placement = container_spec.Placement(**{**vars(PLACEMENT), "image_user": image_user})
    return container_spec.container_spec(wanted, placement)


@pytest.mark.parametrize(
    ("name", "gpu_uuids"),
    [("cpu", []), ("gpu", ["GPU-aaaa", "GPU-bbbb"]), ("simulated", ["GPU-SIM-1"])],
)
def test_payload_equals_the_golden_file(name: str, gpu_uuids: list[str]) -> None:
    expected = json.loads((GOLDEN / f"container-{name}.json").read_text())
    assert spec(gpu_uuids=gpu_uuids) == expected


def task_spec(*, image_user: str = "", **changes: Any) -> dict[str, Any]:
    wanted = attempt(
        "python", "train.py", attempt_id="att-1", env={"LR": "0.1"}, secret_env={"KEY": "canary"}, **changes
    )
    placement = container_spec.TaskPlacement(
        host_id="host-1",
        epoch=7,
        image="lab/train@sha256:" + "0" * 64,
        image_user=image_user,
        entrypoint=["/run/remotegpu/shim/rgpu-shim"],
        command=wanted.command or [],
        environment=wanted.env | wanted.secret_env,
        publish_address="192.0.2.7",
        home="/srv/homes/vol-1",
        mounts=[("/state/shim", "/run/remotegpu/shim", True), ("/state/output", "/output", False)],
    )
    return container_spec.task_spec(wanted, placement)


def test_payload_of_a_task_equals_the_golden_file() -> None:
    assert task_spec(gpu_uuids=["GPU-aaaa"]) == json.loads((GOLDEN / "container-task.json").read_text())


def test_tasks_are_as_confined_as_environments() -> None:
    free = {"PortBindings", "Mounts", "LogConfig", "NetworkMode", "Memory", "MemorySwap", "ShmSize"}
    task, environment = task_spec()["HostConfig"], spec()["HostConfig"]
    assert {key: task[key] for key in task.keys() - free} == {
        key: environment[key] for key in environment.keys() - free
    }
    assert "canary" not in json.dumps(task_spec()["Labels"])


@pytest.mark.parametrize("image_user", ["", "root", "0", "0:0", "root:root"])
def test_image_that_would_run_as_root_runs_as_uid_1000(image_user: str) -> None:
    assert spec(image_user=image_user)["User"] == "1000:1000"


@pytest.mark.parametrize("image_user", ["jovyan", "1000", "1001:100"])
def test_image_with_a_user_of_its_own_keeps_it(image_user: str) -> None:
    assert "User" not in spec(image_user=image_user)


def test_secret_stands_in_the_environment_and_nowhere_else() -> None:
    payload = spec()
    assert "JUPYTERHUB_API_TOKEN=canary" in payload.pop("Env")
    assert "canary" not in json.dumps(payload)


def test_bridge_names_fit_an_interface_and_differ_for_ids_with_one_beginning() -> None:
    names = {container_spec.bridge_name(f"env_019aa000-0000-{number}") for number in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {12}
