"""Limits: shape, refusal texts, who may see and set them."""

from __future__ import annotations

import httpx
from hollow_agent import Fleet

from remotegpu_server.testing import Actors


async def test_quota_refusal_says_whose_limit_what_is_used_and_what_to_stop(
    fleet: Fleet, actors: Actors
) -> None:
    await fleet.host("h1", gpus=4)
    ada = await actors.user("ada")
    await fleet.limit("user", "ada", gpus=2)
    first = (await fleet.create(ada.headers, "train", gpus=2)).json()
    refused = await fleet.create(ada.headers, "more", gpus=1)
    body = refused.json()
    assert (refused.status_code, body["error"]) == (409, "quota_exceeded")
    assert body["detail"] == ("User ada may hold 2 GPUs at once; 2 are in use and this request needs 1 more.")
    assert "train (starting, 2 GPUs)" in body["hint"]
    assert (
        body["data"]["subject"],
        body["data"]["limit"],
        body["data"]["used"],
        body["data"]["requested"],
    ) == ("user", 2, 2, 1)
    assert [one["id"] for one in body["data"]["environments"]] == [first["id"]]


async def test_quota_zero_allows_none_and_null_everything(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await fleet.limit("user", "ada", gpus=0)
    refused = await fleet.create(ada.headers, gpus=1)
    assert refused.json()["error"] == "quota_exceeded"
    assert "ask an admin" in refused.json()["hint"]
    await fleet.limit("user", "ada", gpus=None)
    assert (await fleet.create(ada.headers, gpus=1)).status_code == 201


async def test_quota_of_customer_binds_its_members_together(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1", gpus=4)
    ada, ben = await actors.user("ada"), await actors.user("ben")
    await fleet.limit("customer", "default", memory_bytes=5 * 2**30)
    assert (await fleet.create(ada.headers, memory_bytes=4 * 2**30)).status_code == 201
    refused = await fleet.create(ben.headers, memory_bytes=2 * 2**30)
    assert refused.json()["error"] == "quota_exceeded"
    assert refused.json()["detail"].startswith("Customer default may hold 5 GiB of memory")
    assert refused.json()["data"]["environments"] == [], "other people's work is nobody's business"


async def test_quota_of_environments_counts_pending_ones(fleet: Fleet, actors: Actors) -> None:
    ada = await actors.user("ada")
    await fleet.limit("user", "ada", environments=1)
    assert (await fleet.create(ada.headers, "one")).json()["status"] == "pending"
    assert (await fleet.create(ada.headers, "two")).json()["error"] == "quota_exceeded"


async def test_quota_lines_show_use_and_what_is_left(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=4)
    ada = await actors.user("ada")
    await fleet.limit("user", "ada", gpus=3)
    await fleet.create(ada.headers, gpus=1, cpus=2)
    lines = (await client.get("/v1/quota", headers=ada.headers)).json()["lines"]
    found = {
        (one["subject"], one["resource"]): (one["limit"], one["used"], one["available"]) for one in lines
    }
    assert found[("user", "gpus")] == (3, 1, 2)
    assert found[("user", "cpus")] == (None, 2, None)
    assert found[("customer", "environments")] == (None, 1, None)


async def test_quota_is_set_by_admins_and_read_by_owners(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    ada = await actors.user("ada")
    owner = await actors.user("olga", role="owner")
    other = await actors.user("eve", role="owner", customer="other")
    path = "/v1/quotas/user/ada"
    for person in (ada, owner):
        assert (
            await client.put(path, headers=person.headers, json={"limits": {"gpus": 9}})
        ).status_code == 403
        assert (await client.get(path, headers=person.headers)).status_code == 200
    assert (await client.get(path, headers=other.headers)).status_code == 404
    assert (await client.get("/v1/quotas/customer/default", headers=other.headers)).status_code == 404
    bad = await client.put(path, headers=fleet.admin, json={"limits": {"gpus": -1}})
    assert bad.status_code == 422
