"""Saving an environment as an image: who may, what the agent is told, what becomes of it, where it starts."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.image_saves import loop
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors, Person

DIGEST = f"sha256:{'ab' * 32}"


@pytest.fixture
async def ada(actors: Actors) -> Person:
    return await actors.user("ada")


async def running(fleet: Fleet, agent: HollowAgent, who: Person, **spec: Any) -> str:
    made = await fleet.create(who.headers, **spec)
    assert made.status_code == 201, made.text
    await agent.obey()
    return str(made.json()["id"])


async def ask(fleet: Fleet, who: Person, key: str, name: str = "mine") -> httpx.Response:
    return await fleet.client.post(
        f"/v1/environments/{key}:save-image", headers=who.headers, json={"name": name}
    )


async def tell(agent: HollowAgent, save_id: str, **report: Any) -> httpx.Response:
    body = {"epoch": agent.epoch, "progress_bytes": 2**30, **report}
    return await agent.client.put(f"/v1/agent/image-saves/{save_id}", headers=agent.headers, json=body)


async def saves(fleet: Fleet, who: Person, key: str) -> list[dict[str, Any]]:
    answer = await fleet.client.get(f"/v1/environments/{key}/image-saves", headers=who.headers)
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def wanted(agent: HollowAgent) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await agent.poll()).json()["image_saves"]
    return found


async def told(app: FastAPI, user_id: str) -> list[str]:
    async with app.state.database.sessions() as db:
        found = await db.scalars(
            text("SELECT kind FROM notifications WHERE user_id = :id AND kind LIKE 'image_save.%'"),
            {"id": user_id},
        )
        return list(found)


async def set_platform(fleet: Fleet, key: str, value: Any) -> httpx.Response:
    return await fleet.client.patch(f"/v1/settings/{key}", headers=fleet.admin, json={"value": value})


async def saved(fleet: Fleet, agent: HollowAgent, who: Person, key: str) -> dict[str, Any]:
    """A save that went well, to its entry in the catalogue."""
    asked = await ask(fleet, who, key)
    assert asked.status_code == 202, asked.text
    assert (await tell(agent, asked.json()["id"], image_id=DIGEST)).status_code == 204
    image: dict[str, Any] = (await fleet.client.get("/v1/images/mine", headers=who.headers)).json()
    return image


async def test_save_goes_from_the_request_to_an_image_of_the_workspace(
    fleet: Fleet, actors: Actors, app: FastAPI, ada: Person
) -> None:
    agent = await fleet.host("h1")
    await fleet.client.patch(
        "/v1/images/base", headers=fleet.admin, json={"framework": "pytorch", "cuda_version": "12.4"}
    )
    key = await running(fleet, agent, ada, gpus=1, env={"SECRETLIKE": "x"})
    revision = (await agent.poll()).json()["revision"]
    asked = (await ask(fleet, ada, key)).json()
    assert (asked["status"], asked["image_id"], asked["generation"]) == ("requested", None, 1)
    answer = (await agent.poll(since=revision)).json()
    (request,) = answer["image_saves"]
    assert answer["revision"] != revision
    assert (request["workload_id"], request["generation"]) == (key, 1)
    assert request["max_bytes"] == 50 * 2**30
    assert (await tell(agent, asked["id"])).status_code == 204
    assert [one["status"] for one in await saves(fleet, ada, key)] == ["saving"]
    for _ in range(2):
        assert (await tell(agent, asked["id"], image_id=DIGEST)).status_code == 204
    (done,) = await saves(fleet, ada, key)
    image = (await fleet.client.get("/v1/images/mine", headers=ada.headers)).json()
    assert (done["status"], done["image_id"], done["reason"]) == ("done", image["id"], None)
    assert await wanted(agent) == []
    assert (image["visibility"], image["local"], image["digest"]) == ("workspace", True, DIGEST)
    assert (image["framework"], image["cuda_version"], image["size_bytes"]) == ("pytorch", "12.4", 2**30)
    assert image["reference"] == request["reference"]
    assert await told(app, ada.id) == ["image_save.done"]
    bob = await actors.user("bob")
    assert (await fleet.client.get("/v1/images/mine", headers=bob.headers)).status_code == 404
    events = await fleet.client.get("/v1/events", headers=ada.headers, params={"subject_id": key})
    kinds = [one["kind"] for one in events.json()["items"]]
    assert {"environment.image_save_requested", "environment.image_save_done"} <= set(kinds)


async def test_cancelled_save_leaves_the_agents_list_frees_its_name_and_is_refused_when_it_comes(
    fleet: Fleet, actors: Actors, app: FastAPI, ada: Person
) -> None:
    agent = await fleet.host("h1")
    key = await running(fleet, agent, ada)
    save = (await ask(fleet, ada, key)).json()["id"]
    await tell(agent, save)
    revision = (await agent.poll()).json()["revision"]
    path = f"/v1/image-saves/{save}:cancel"
    eve = await actors.user("eve")
    hidden = await fleet.client.post(path, headers=eve.headers)
    none = await fleet.client.post("/v1/image-saves/sav-none:cancel", headers=eve.headers)
    assert (hidden.status_code, none.status_code) == (404, 404)
    assert hidden.json()["detail"] == none.json()["detail"], "nobody learns which saves there are"
    for _ in range(2):
        ended = await fleet.client.post(path, headers=fleet.admin)
        assert (ended.status_code, ended.json()["status"], ended.json()["reason"]) == (200, "cancelled", None)
    answer = (await agent.poll(since=revision)).json()
    assert (answer["image_saves"], answer["revision"] != revision) == ([], True)
    assert await told(app, ada.id) == ["image_save.cancelled"], "once, because somebody else did it"
    late = await tell(agent, save, image_id=DIGEST)
    assert (late.status_code, late.json()["error"]) == (409, "state_conflict")
    assert (await fleet.client.get("/v1/images/mine", headers=ada.headers)).status_code == 404
    again = (await ask(fleet, ada, key)).json()["id"]
    assert (await tell(agent, again, image_id=DIGEST)).status_code == 204
    over = await fleet.client.post(f"/v1/image-saves/{again}:cancel", headers=ada.headers)
    assert (over.status_code, over.json()["error"]) == (409, "state_conflict")
    mine = (await ask(fleet, ada, key, name="other")).json()["id"]
    await fleet.client.post(f"/v1/image-saves/{mine}:cancel", headers=ada.headers)
    assert "image_save.done" in await told(app, ada.id)
    assert len(await told(app, ada.id)) == 2, "who cancels it knows"


async def test_cancel_and_report_at_the_same_moment_leave_one_end(fleet: Fleet, ada: Person) -> None:
    agent = await fleet.host("h1")
    key = await running(fleet, agent, ada)
    for number in range(8):
        save = (await ask(fleet, ada, key, name=f"mine-{number}")).json()["id"]
        cancelled, reported = await asyncio.gather(
            fleet.client.post(f"/v1/image-saves/{save}:cancel", headers=ada.headers),
            tell(agent, save, image_id=DIGEST),
        )
        assert {cancelled.status_code, reported.status_code} in ({200, 409}, {409, 204})
        image = await fleet.client.get(f"/v1/images/mine-{number}", headers=ada.headers)
        assert image.status_code == (404 if cancelled.status_code == 200 else 200)


async def test_saved_image_starts_only_on_the_host_that_has_it(fleet: Fleet, ada: Person) -> None:
    agent = await fleet.host("h1", gpus=1)
    key = await running(fleet, agent, ada, gpus=1)
    image = await saved(fleet, agent, ada, key)
    empty = await fleet.host("h2", gpus=4)
    waits = (await fleet.create(ada.headers, "two", image="mine", gpus=1)).json()
    assert (waits["status"], waits["reason"]) == ("pending", "no_free_gpu")
    never = await fleet.create(ada.headers, "three", image="mine", gpus=2)
    assert never.status_code == 422, never.text
    await fleet.act(ada.headers, key, "stop")
    await agent.obey()
    await fleet.client.delete(f"/v1/environments/{waits['id']}", headers=ada.headers)
    again = (await fleet.create(ada.headers, "four", image="mine", gpus=1)).json()
    assert again["host_id"] == agent.host_id
    workload = (await agent.desired())[again["id"]]
    assert (workload["image_reference"], workload["image_digest"]) == (DIGEST, None)
    await fleet.client.delete(f"/v1/environments/{again['id']}", headers=ada.headers)
    await agent.obey()
    # After a new session of its agent, what that tells counts: here the image is gone, and another has it.
    await agent.register()
    empty.images = [image["reference"]]
    await empty.register()
    moved = (await fleet.create(ada.headers, "five", image="mine", gpus=1)).json()
    assert moved["host_id"] == empty.host_id


async def test_image_that_no_host_has_any_more_is_refused_in_words(fleet: Fleet, ada: Person) -> None:
    agent = await fleet.host("h1", gpus=1)
    key = await running(fleet, agent, ada, gpus=1)
    await saved(fleet, agent, ada, key)
    await fleet.act(ada.headers, key, "stop")
    await agent.obey()
    await agent.register()
    refused = await fleet.create(ada.headers, "two", image="mine", gpus=1)
    assert refused.status_code == 422
    assert "no registry has it" in refused.json()["detail"]


async def test_policy_says_who_may_save(fleet: Fleet, actors: Actors, ada: Person) -> None:
    agent = await fleet.host("h1")
    key = await running(fleet, agent, ada)
    assert (await set_platform(fleet, "images.save_allowed", "everybody")).status_code == 422
    assert (await set_platform(fleet, "images.save_allowed", "nobody")).status_code == 200
    refused = await ask(fleet, ada, key)
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
    assert (await set_platform(fleet, "images.save_allowed", "owners")).status_code == 200
    assert (await ask(fleet, ada, key)).status_code == 202, "she owns her personal workspace"
    bob = await actors.user("bob")
    assert (await ask(fleet, bob, key, "his")).status_code == 404


@pytest.mark.parametrize("runtime", ["docker", "process"])
async def test_only_a_running_container_can_be_saved(fleet: Fleet, ada: Person, runtime: str) -> None:
    await fleet.image("other", runtime=runtime)
    agent = await fleet.host("h1", runtime=runtime)
    key = await running(fleet, agent, ada, image="other")
    if runtime == "docker":
        await fleet.act(ada.headers, key, "stop")
    refused = await ask(fleet, ada, key)
    assert (refused.status_code, refused.json()["error"]) == (409, "state_conflict")
    assert ("processes" if runtime == "process" else "stopping") in refused.json()["detail"]


async def test_two_saves_of_one_environment_or_one_name_leave_one(
    fleet: Fleet, actors: Actors, ada: Person
) -> None:
    agent = await fleet.host("h1", gpus=2)
    key = await running(fleet, agent, ada)
    bob = await actors.user("bob")
    other = await running(fleet, agent, bob)
    answers = await asyncio.gather(*(ask(fleet, ada, key, f"mine-{number}") for number in range(4)))
    assert sorted(one.status_code for one in answers) == [202, 409, 409, 409]
    (won,) = [one.json() for one in answers if one.status_code == 202]
    taken = await ask(fleet, bob, other, won["image_name"])
    assert (taken.status_code, taken.json()["error"]) == (409, "name_taken")
    known = await ask(fleet, bob, other, "base")
    assert (known.status_code, known.json()["error"]) == (409, "name_taken")


async def test_name_that_was_taken_meanwhile_fails_the_save_with_its_reason(
    fleet: Fleet, app: FastAPI, ada: Person
) -> None:
    agent = await fleet.host("h1")
    key = await running(fleet, agent, ada)
    asked = (await ask(fleet, ada, key)).json()
    await fleet.image("mine")
    assert (await tell(agent, asked["id"], image_id=DIGEST)).status_code == 204
    (failed,) = await saves(fleet, ada, key)
    assert (failed["status"], failed["reason"]) == ("failed", "name_taken")
    assert await told(app, ada.id) == ["image_save.failed"]


async def test_agents_failure_is_kept_and_another_save_may_follow(fleet: Fleet, ada: Person) -> None:
    agent = await fleet.host("h1")
    key = await running(fleet, agent, ada)
    asked = (await ask(fleet, ada, key)).json()
    assert (await tell(agent, asked["id"], reason="too_large", detail="More than 1 GiB.")).status_code == 204
    (failed,) = await saves(fleet, ada, key)
    assert (failed["status"], failed["reason"], failed["message"]) == (
        "failed", "too_large", "More than 1 GiB.",
    )  # fmt: skip
    assert (await tell(agent, asked["id"], image_id=DIGEST)).status_code == 409
    assert (await ask(fleet, ada, key)).status_code == 202
    assert len(await saves(fleet, ada, key)) == 2


async def test_report_of_a_past_session_or_another_host_is_refused(fleet: Fleet, ada: Person) -> None:
    holder = await fleet.host("h1")
    key = await running(fleet, holder, ada)
    stranger = await fleet.host("h2")
    asked = (await ask(fleet, ada, key)).json()
    assert (await tell(stranger, asked["id"])).status_code == 403
    stale = await tell(holder, asked["id"], epoch=holder.epoch - 1)
    assert (stale.status_code, stale.json()["error"]) == (409, "epoch_stale")
    assert (await tell(holder, "sav-none")).status_code == 404


@pytest.mark.parametrize("verb", ["stop", "restart"])
async def test_environment_that_ends_takes_its_save_with_it(
    fleet: Fleet, app: FastAPI, work: Work, ada: Person, verb: str
) -> None:
    agent = await fleet.host("h1")
    key = await running(fleet, agent, ada)
    asked = (await ask(fleet, ada, key)).json()
    await loop.follow(work)
    assert [one["status"] for one in await saves(fleet, ada, key)] == ["requested"]
    assert (await fleet.act(ada.headers, key, verb)).status_code == 200
    assert await wanted(agent) == [], "the agent stops at once"
    await loop.follow(work)
    (failed,) = await saves(fleet, ada, key)
    assert (failed["status"], failed["reason"]) == ("failed", "environment_stopped")
    assert (await tell(agent, asked["id"], image_id=DIGEST)).status_code == 409
    assert await told(app, ada.id) == ["image_save.failed"]


async def test_save_that_takes_too_long_fails_and_is_taken_from_its_agent(
    fleet: Fleet, app: FastAPI, work: Work, ada: Person
) -> None:
    agent = await fleet.host("h1")
    key = await running(fleet, agent, ada)
    await ask(fleet, ada, key)
    await agent.register()
    assert len(await wanted(agent)) == 1, "a new session of the agent begins it anew"
    async with app.state.database.sessions() as db:
        await db.execute(text("UPDATE image_saves SET created_at = created_at - interval '2 hours'"))
        await db.commit()
    await loop.follow(work)
    (failed,) = await saves(fleet, ada, key)
    assert (failed["status"], failed["reason"]) == ("failed", "took_too_long")
    assert await wanted(agent) == []


async def test_new_reference_makes_a_saved_image_one_of_a_registry(fleet: Fleet, ada: Person) -> None:
    agent = await fleet.host("h1")
    key = await running(fleet, agent, ada)
    await saved(fleet, agent, ada, key)
    refused = await fleet.client.patch("/v1/images/mine", headers=fleet.admin, json={"digest": None})
    assert refused.status_code == 422
    changed = await fleet.client.patch(
        "/v1/images/mine", headers=fleet.admin, json={"reference": "registry.example.org/mine:1"}
    )
    assert (changed.json()["local"], changed.json()["digest"]) == (False, None)
