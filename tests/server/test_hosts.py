"""Hosts and images as admins handle them."""

from __future__ import annotations

import httpx
from hollow_agent import Fleet

from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.testing import Actors


async def test_host_cordoned_takes_no_new_work_and_keeps_what_runs(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, work: Work
) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    cordoned = await client.post("/v1/hosts/h1:cordon", headers=fleet.admin)
    assert (cordoned.json()["ready"], cordoned.json()["not_ready_reason"]) == (False, "cordoned by an admin")
    waits = (await fleet.create(ada.headers, "two", gpus=1)).json()
    assert (waits["reason"], "cordoned" in waits["message"]) == ("no_ready_host", True)
    assert (await fleet.get(ada.headers, key))["status"] == "starting"
    await client.post("/v1/hosts/h1:uncordon", headers=fleet.admin)
    await turns.place_pending(work)
    assert (await fleet.get(ada.headers, waits["id"]))["status"] == "starting"


async def test_host_with_a_broken_runtime_is_not_ready(fleet: Fleet, client: httpx.AsyncClient) -> None:
    agent = await fleet.host("h1")
    await agent.heartbeat(runtime_healthy=False, runtime_detail="no answer from the engine")
    host = (await client.get("/v1/hosts/h1", headers=fleet.admin)).json()
    assert not host["ready"]
    assert "no answer from the engine" in host["not_ready_reason"]


async def test_host_shows_what_it_has_and_what_is_free(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1", gpus=2)
    await agent.heartbeat()
    ada = await actors.user("ada")
    await fleet.create(ada.headers, gpus=1, cpus=2)
    (host,) = (await client.get("/v1/hosts", headers=fleet.admin)).json()["items"]
    assert (host["gpus_total"], host["gpus_free"], host["cpus_free"], host["simulated"]) == (2, 1, 30, True)
    assert host["metrics"]["cpu_percent"] == 5.0
    assert (await client.get("/v1/hosts", headers=ada.headers)).status_code == 403


async def test_host_in_use_is_not_deleted(fleet: Fleet, actors: Actors, client: httpx.AsyncClient) -> None:
    agent = await fleet.host("h1")
    await fleet.host("h2", gpus=0)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    live = await client.delete("/v1/hosts/h1", headers=fleet.admin)
    assert (live.status_code, live.json()["error"]) == (409, "in_use")
    await fleet.act(ada.headers, key, "stop")
    await agent.obey()
    history = await client.delete("/v1/hosts/h1", headers=fleet.admin)
    assert history.json()["error"] == "in_use"
    assert (await client.delete("/v1/hosts/h2", headers=fleet.admin)).status_code == 204
    assert (await client.get("/v1/hosts/h2", headers=fleet.admin)).status_code == 404


async def test_host_and_image_names_are_unique_and_lists_have_pages(
    fleet: Fleet, client: httpx.AsyncClient
) -> None:
    for name in ("a", "b", "c"):
        await fleet.new_host(name)
    again = await client.post("/v1/hosts", headers=fleet.admin, json={"name": "a"})
    assert (again.status_code, again.json()["error"]) == (409, "name_taken")
    image = await client.post("/v1/images", headers=fleet.admin, json={"name": "base", "reference": "x"})
    assert image.json()["error"] == "name_taken"
    first = (await client.get("/v1/hosts?limit=2", headers=fleet.admin)).json()
    rest = await client.get(f"/v1/hosts?limit=2&cursor={first['next_cursor']}", headers=fleet.admin)
    assert [one["name"] for one in first["items"] + rest.json()["items"]] == ["a", "b", "c"]
    assert rest.json()["next_cursor"] is None


async def test_gpus_are_listed_by_host_and_index_over_pages(fleet: Fleet, client: httpx.AsyncClient) -> None:
    await fleet.host("h2", gpus=2)
    await fleet.host("h1", gpus=3)
    seen: list[tuple[str, int]] = []
    cursor = ""
    while cursor is not None:
        page = (await client.get(f"/v1/gpus?limit=2{cursor}", headers=fleet.admin)).json()
        seen += [(gpu["host_name"], gpu["index"]) for gpu in page["items"]]
        cursor = f"&cursor={page['next_cursor']}" if page["next_cursor"] else None
    assert seen == [("h1", 0), ("h1", 1), ("h1", 2), ("h2", 0), ("h2", 1)]
    foreign = await client.get("/v1/gpus?cursor=WzEsMiwzXQ", headers=fleet.admin)
    assert (foreign.status_code, foreign.json()["error"]) == (422, "invalid")


async def test_image_with_a_new_reference_is_pinned_anew(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    digest = "sha256:" + "b" * 64
    await client.patch("/v1/images/base", headers=fleet.admin, json={"digest": digest})
    changed = await client.patch(
        "/v1/images/base", headers=fleet.admin, json={"reference": "example.org/base:2"}
    )
    assert (changed.json()["reference"], changed.json()["digest"]) == ("example.org/base:2", None)
    ada = await actors.user("ada")
    refused = await client.patch("/v1/images/base", headers=ada.headers, json={"status": "withdrawn"})
    assert refused.status_code == 403
