"""The catalogue: for whom an image is, deprecation, a workspace's allow-list, the seed."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import func, select

from remotegpu_server.db import tables
from remotegpu_server.images import seed
from remotegpu_server.testing import Actors, Person


async def _add(client: httpx.AsyncClient, fleet: Fleet, name: str, **fields: Any) -> dict[str, Any]:
    body = {"name": name, "reference": f"example.org/{name}:1"} | fields
    answer = await client.post("/v1/images", headers=fleet.admin, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def _patch(client: httpx.AsyncClient, fleet: Fleet, name: str, **fields: Any) -> httpx.Response:
    return await client.patch(f"/v1/images/{name}", headers=fleet.admin, json=fields)


async def _names(client: httpx.AsyncClient, headers: dict[str, str], query: str = "") -> list[str]:
    answer = await client.get(f"/v1/images?{query}", headers=headers)
    return [one["name"] for one in answer.json()["items"]]


async def _workspace(app: FastAPI, person: Person) -> str:
    async with app.state.database.sessions() as db:
        row = tables.Workspace
        return str(await db.scalar(select(row.id).where(row.personal_of == person.id)))


async def test_image_for_others_does_not_exist(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    await fleet.host("h1", gpus=1)
    ada, eve = await actors.user("ada"), await actors.user("eve", customer="other")
    workspace = await _workspace(app, ada)
    await _add(client, fleet, "ours", customer="default")
    await _add(client, fleet, "mine", workspace=workspace)
    assert await _names(client, ada.headers) == ["base", "mine", "ours"]
    assert await _names(client, eve.headers) == ["base"]
    unknown = await fleet.create(eve.headers, "x", image="nothing")
    for name in ("ours", "mine"):
        assert (await client.get(f"/v1/images/{name}", headers=eve.headers)).status_code == 404
        refused = await fleet.create(eve.headers, "x", image=name)
        assert refused.status_code == unknown.status_code
        assert refused.json()["detail"] == unknown.json()["detail"].replace("nothing", name)
        assert (await fleet.create(ada.headers, name, image=name)).status_code == 201
    both = {"name": "x", "reference": "x", "customer": "default", "workspace": workspace}
    assert (await client.post("/v1/images", headers=fleet.admin, json=both)).status_code == 422


async def test_deprecated_image_starts_with_a_warning_until_its_time(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    changed = await _patch(client, fleet, "base", status="deprecated", deprecation_note="Use new.")
    assert changed.json()["status"] == "deprecated"
    made = (await fleet.create(ada.headers, "a")).json()
    path = f"/v1/events?subject_type=environment&subject_id={made['id']}"
    told = (await client.get(path, headers=ada.headers)).json()["items"]
    assert "Image base is deprecated. Use new." in [one["message"] for one in told]
    await _patch(client, fleet, "base", starts_until="2020-01-01T00:00:00Z")
    refused = (await fleet.create(ada.headers, "b")).json()
    assert (refused["error"], refused["hint"]) == ("image_not_allowed", "Use new.")
    assert (await fleet.get(ada.headers, made["id"]))["status"] == "starting", "what runs goes on"
    again = (await _patch(client, fleet, "base", status="active")).json()
    assert (again["starts_until"], again["deprecation_note"]) == (None, "")
    assert (await fleet.create(ada.headers, "b")).status_code == 201


async def test_allow_list_narrows_down_what_a_workspace_may_use(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    await fleet.host("h1", gpus=1)
    ada, olga = await actors.user("ada"), await actors.user("olga", role="owner")
    await _add(client, fleet, "lab")
    path = f"/v1/workspaces/{await _workspace(app, ada)}/images"
    set_ = await client.put(path, headers=olga.headers, json={"images": ["lab"]})
    assert [one["name"] for one in set_.json()["images"]] == ["lab"]
    refused = (await fleet.create(ada.headers, "a")).json()
    assert refused["detail"] == "Workspace ada may not use image base."
    assert (await fleet.create(ada.headers, "a", image="lab")).status_code == 201
    assert (await client.put(path, headers=olga.headers, json={"images": ["none"]})).status_code == 404
    assert (await client.put(path, headers=ada.headers, json={"images": None})).status_code == 403
    await client.put(path, headers=olga.headers, json={"images": None})
    assert (await fleet.create(ada.headers, "b")).status_code == 201


async def test_seed_makes_ten_inactive_entries_once_and_leaves_changed_ones_alone(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    ada = await actors.user("ada")
    for _ in range(2):
        async with app.state.database.sessions() as db:
            await seed.seed(db)
            await db.commit()
    async with app.state.database.sessions() as db:
        row = tables.Image
        count = await db.scalar(
            select(func.count(row.id)).where(row.status == "inactive", row.digest.is_(None))
        )
    assert count == 10
    assert await _names(client, ada.headers) == ["base"], "nobody is offered what nobody activated"
    assert (await fleet.create(ada.headers, image="pytorch-2-2")).json()["error"] == "image_not_allowed"
    await _patch(client, fleet, "pytorch-2-2", status="active", reference="example.org/pytorch:mine")
    async with app.state.database.sessions() as db:
        await seed.seed(db)
        await db.commit()
    found = (await client.get("/v1/images/pytorch-2-2", headers=ada.headers)).json()
    assert found["reference"] == "example.org/pytorch:mine"
    assert await _names(client, fleet.admin, "framework=pytorch&status=inactive") == [
        "ngc-pytorch-24-01",
        "pytorch-2-1",
    ]
    assert await _names(client, fleet.admin, "search=hugging") == ["huggingface-transformers"]
    assert await _names(client, fleet.admin, "search=%25") == []
