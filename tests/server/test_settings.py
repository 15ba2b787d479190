"""Platform settings: types, bounds, who reads and writes them, and that each has a reader."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import select

from remotegpu_server.db import tables
from remotegpu_server.platform_settings import registry
from remotegpu_server.platform_settings.registry import REGISTRY
from remotegpu_server.testing import Actors

ROOT = Path(__file__).parents[2]


def _names_by_key() -> dict[str, str]:
    """The module constant that holds each setting."""
    return {value.key: name for name, value in vars(registry).items() if isinstance(value, registry.Setting)}


def _read_names() -> set[str]:
    """Every name and every text of the server and the hub's pages, outside the registry."""
    found: set[str] = set()
    files = [
        *(ROOT / "server/remotegpu_server").rglob("*.py"),
        *(ROOT / "hub_plugins/remotegpu_hub").rglob("*.py"),
    ]
    for file in files:
        if file.name in ("registry.py", "openapi.py"):  # openapi.py only shows keys as examples
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_every_registered_setting_has_a_reader() -> None:
    names, read = _names_by_key(), _read_names()
    assert set(names) == set(REGISTRY), "every setting is a constant of the registry"
    assert [key for key, name in names.items() if name not in read and key not in read] == []


def test_every_setting_is_declared_well() -> None:
    for key, setting in REGISTRY.items():
        group, dot, name = key.partition(".")
        assert all((group, dot, name)), key
        assert len(setting.doc) > 20, key
        assert setting.doc.endswith("."), key
        if isinstance(setting.default, (int, float)) and not isinstance(setting.default, bool):
            assert setting.minimum is not None, f"{key} has no bounds"
            assert setting.maximum is not None, f"{key} has no bounds"
            assert setting.minimum <= setting.default <= setting.maximum, key


async def _set(client: httpx.AsyncClient, headers: dict[str, str], key: str, value: Any) -> httpx.Response:
    return await client.patch(f"/v1/settings/{key}", headers=headers, json={"value": value})


async def test_every_setting_can_be_changed_and_set_back(fleet: Fleet, client: httpx.AsyncClient) -> None:
    for key, setting in REGISTRY.items():
        default = setting.default
        other: Any = (
            not default if isinstance(default, bool) else f"{default}x" if isinstance(default, str) else None
        )
        if key == "webhooks.allowed_networks":
            other = "10.0.0.0/8"
        if setting.choices:
            other = next(one for one in setting.choices if one != default)
        if other is None:
            other = setting.minimum if default != setting.minimum else setting.maximum
            other = type(default)(other)
        changed = await _set(client, fleet.admin, key, other)
        assert changed.status_code == 200, (key, changed.text)
        assert (await client.get(f"/v1/settings/{key}", headers=fleet.admin)).json()["value"] == other
        reset = await client.post(f"/v1/settings/{key}:reset", headers=fleet.admin)
        assert (reset.json()["value"], reset.json()["changed_by"]) == (default, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quotas.gpu_hours_window_s", "3600"),
        ("quotas.gpu_hours_window_s", 3600.5),
        ("quotas.gpu_hours_window_s", True),
        ("quotas.gpu_hours_window_s", 1),
        ("quotas.gpu_hours_warn_percent", 100.5),
        ("system.name", 7),
        ("system.name", None),
        ("system.name", ["a"]),
    ],
)
async def test_wrong_type_or_bound_is_invalid(
    fleet: Fleet, client: httpx.AsyncClient, key: str, value: Any
) -> None:
    answer = await _set(client, fleet.admin, key, value)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


async def test_batch_is_all_or_nothing_and_audited_with_old_and_new(
    fleet: Fleet, client: httpx.AsyncClient, app: FastAPI
) -> None:
    async def name() -> Any:
        return (await client.get("/v1/settings/system.name", headers=fleet.admin)).json()["value"]

    bad = {"values": {"system.name": "Lab", "quotas.gpu_hours_warn_percent": 500}}
    assert (await client.patch("/v1/settings", headers=fleet.admin, json=bad)).status_code == 422
    assert await name() == "RemoteGPU"
    good = {"values": {"system.name": "Lab", "quotas.gpu_hours_warn_percent": 50}}
    assert (await client.patch("/v1/settings", headers=fleet.admin, json=good)).status_code == 200
    assert await name() == "Lab"
    async with app.state.database.sessions() as db:
        row = tables.AuditRecord
        found = (
            await db.scalars(
                select(row).where(row.action == "settings.update_settings", row.outcome == "done")
            )
        ).one()
    assert found.detail["old"] == {"system.name": "RemoteGPU", "quotas.gpu_hours_warn_percent": 90.0}
    assert found.detail["new"] == good["values"]


async def test_people_see_public_settings_only(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    ada = await actors.user("ada")
    shown = (await client.get("/v1/settings", headers=ada.headers)).json()["settings"]
    assert {one["key"] for one in shown} == {key for key, one in REGISTRY.items() if one.public}
    path = "/v1/settings/quotas.gpu_hours_grace_s"
    assert (await client.get(path, headers=ada.headers)).status_code == 404
    assert (await _set(client, ada.headers, "system.name", "mine")).status_code == 403


async def test_default_policy_setting_binds_users_without_a_restart(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await _set(client, fleet.admin, "quotas.default_user_policy", "basic")
    ada = await actors.user("ada")
    lines = (await client.get("/v1/quota", headers=ada.headers)).json()["lines"]
    found = {one["resource"]: (one["limit"], one["policy"]) for one in lines if one["subject"] == "user"}
    assert found["environments"] == (3, "basic")
    assert (await _set(client, fleet.admin, "quotas.gpu_hours_window_s", 7200)).status_code == 200
    lines = (await client.get("/v1/quota", headers=ada.headers)).json()["lines"]
    assert next(one["window_s"] for one in lines if one["resource"] == "gpu_hours") == 7200
