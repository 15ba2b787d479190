"""A server that dies around the commit of a create: asked again with its key, one effect and one answer.

The table is the OpenAPI document: every create that honours ``Idempotency-Key`` is driven with its example,
so a new one is covered when it is there. Here the process is spared and only the request dies, which the
database cannot tell apart; ``test_start.py`` and ``test_replicas.py`` kill the real thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from dying import Died, DyingFaultPoints
from fastapi import FastAPI
from hollow_agent import Fleet

from remotegpu_server.db import tables
from remotegpu_server.fault_points import COMMITS
from remotegpu_server.testing import Actors

UNCOUNTED = {"alembic_version", "leadership"}


def _creates(app: FastAPI) -> list[str]:
    return [
        path
        for path, operations in app.openapi()["paths"].items()
        if "201" in operations.get("post", {}).get("responses", {})
        and any(one["name"] == "Idempotency-Key" for one in operations["post"].get("parameters", []))
    ]


def _example(app: FastAPI, path: str) -> dict[str, Any]:
    document = app.openapi()
    operation = document["paths"][path]["post"]
    if "requestBody" not in operation:
        return {}
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    example: dict[str, Any] = dict(named["examples"][0])
    return example


BODIES: Mapping[str, dict[str, Any]] = {
    "/v1/alert-silences": {"until": (datetime.now(UTC) + timedelta(days=1)).isoformat()},
    "/v1/environments": {"gpu_model": None, "gpus": 1},
    "/v1/images": {"name": "other"},
    "/v1/users": {"customer": "default", "username": "grace"},
}
"""What an example needs changed to fit this system; ``None`` leaves a field out."""


async def _rows(app: FastAPI) -> dict[str, int]:
    names = [one for one in tables.Base.metadata.tables if one not in UNCOUNTED]
    counts = [
        sa.select(sa.func.count()).select_from(tables.Base.metadata.tables[one]).scalar_subquery().label(one)
        for one in names
    ]
    async with app.state.database.sessions() as db:
        return dict((await db.execute(sa.select(*counts))).one()._mapping)


@pytest.mark.parametrize("label", sorted(COMMITS))
async def test_create_that_dies_is_asked_again_and_has_one_effect(
    app: FastAPI, client: httpx.AsyncClient, fleet: Fleet, actors: Actors, label: str
) -> None:
    await fleet.host("h1", gpus=4)
    await actors.user("ada")
    await fleet.limit("user", "root", gpus=1)
    known = await _known(fleet)
    problems: list[str] = []
    for path in _creates(app):
        body = {
            key: value
            for key, value in (_example(app, path) | BODIES.get(path, {})).items()
            if value is not None
        }
        headers = fleet.admin | {"Idempotency-Key": f"crash-{path}"}
        url = path.format(**known)
        before = await _rows(app)
        app.state.fault_points = DyingFaultPoints(label)
        try:
            answer = await client.post(url, json=body, headers=headers)
            problems.append(f"{path}: answered {answer.status_code} {answer.text}")
        except Died:
            pass
        after = await _rows(app)
        if (after == before) != (label == "before_commit"):
            problems.append(f"{path}: rows before {before}, after {after}")
        first = await client.post(url, json=body, headers=headers)
        made = await _rows(app)
        again = await client.post(url, json=body, headers=headers)
        if first.status_code != 201:
            problems.append(f"{path}: {first.status_code} {first.text}")
        if (first.status_code, first.content) != (again.status_code, again.content):
            problems.append(f"{path}: {first.text} and then {again.text}")
        if await _rows(app) != made or (label == "after_commit" and made != after):
            problems.append(f"{path}: a repetition had an effect: {after}, {made}, {await _rows(app)}")
    assert not problems, "\n".join(problems)


async def _known(fleet: Fleet) -> dict[str, str]:
    """What the paths name. One that is not here fails, until somebody adds it."""
    answer = await fleet.client.post("/v1/workspaces", headers=fleet.admin, json={"name": "Team"})
    return {
        "host": "h1",
        "user": "ada",
        "customer": "default",
        "image": "base",
        "workspace": answer.json()["id"],
    }
