"""Reservations: promised once, kept from others, given back by themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text

from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.reservations import loop as reservations_loop
from remotegpu_server.testing import Actors

NOW = datetime.now(UTC)


async def reserve(
    client: httpx.AsyncClient, headers: dict[str, str], gpus: int, *, hours: tuple[float, float], **more: Any
) -> httpx.Response:
    start, end = (NOW + timedelta(hours=hour) for hour in hours)
    body = {"name": "course", "gpus": gpus, "starts_at": start.isoformat(), "ends_at": end.isoformat()}
    return await client.post("/v1/reservations", headers=headers, json=body | more)


async def test_conflict_names_the_next_free_slot_and_that_one_is_free(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=2)
    ada, ben = await actors.user("ada"), await actors.user("ben", customer="other")
    assert (await reserve(client, ada.headers, 2, hours=(30, 32))).status_code == 201
    refused = await reserve(client, ben.headers, 1, hours=(31, 33))
    assert refused.status_code == 409
    slot = refused.json()["data"]["next_free"]
    assert datetime.fromisoformat(slot["starts_at"]) == NOW + timedelta(hours=32)
    assert "next free slot" in refused.json()["hint"]
    again = await client.post(
        "/v1/reservations", headers=ben.headers, json={"name": "later", "gpus": 1, **slot}
    )
    assert again.status_code == 201, again.text
    never = await reserve(client, ben.headers, 3, hours=(100, 101))
    assert (never.status_code, never.json()["data"]["next_free"]) == (409, None)


async def test_calendar_shows_others_without_whose_they_are(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=2)
    ada, ben = await actors.user("ada"), await actors.user("ben", customer="other")
    made = (await reserve(client, ada.headers, 1, hours=(30, 32))).json()
    seen = (await client.get("/v1/reservations/calendar", headers=ben.headers)).json()
    assert [(one["gpus"], one["reservation_id"], one["name"]) for one in seen["entries"]] == [(1, None, None)]
    assert seen["models"] == [{"gpu_model": "A100-80GB", "total": 2}]
    mine = (await client.get("/v1/reservations/calendar", headers=ada.headers)).json()
    assert mine["entries"][0]["reservation_id"] == made["id"]
    assert (await client.get(f"/v1/reservations/{made['id']}", headers=ben.headers)).status_code == 404
    cancel = f"/v1/reservations/{made['id']}:cancel"
    assert (await client.post(cancel, headers=ben.headers)).status_code == 404
    assert (await client.post(cancel, headers=ada.headers)).json()["state"] == "cancelled"
    assert (await client.post(cancel, headers=ada.headers)).status_code == 409


async def test_last_free_slot_goes_to_exactly_one_of_many(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=1)
    people = [await actors.user(f"user{number}") for number in range(6)]
    for round_number in range(10):
        start = 30 + 2 * round_number
        answers = await asyncio.gather(
            *(reserve(client, one.headers, 1, hours=(start, start + 2)) for one in people)
        )
        assert Counter(answer.status_code for answer in answers) == {201: 1, 409: len(people) - 1}


async def test_promised_gpus_are_kept_for_their_own_and_work_that_ends_before_may_use_them(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, ben = await actors.user("ada"), await actors.user("ben", customer="other")
    made = (await reserve(client, ada.headers, 1, hours=(2, 4))).json()
    first = await fleet.create(ben.headers, "first", gpus=1)
    assert first.json()["status"] == "starting", "one GPU is not promised"
    refused = await fleet.create(ben.headers, "second", gpus=1)
    assert (refused.json()["status"], refused.json()["reason"]) == ("pending", "reserved")
    await turns.place_pending(work)
    assert (await fleet.get(ben.headers, refused.json()["id"]))["reason"] == "reserved"
    await fleet.act(ben.headers, refused.json()["id"], "stop")
    asked = {"image": "base", "gpus": 1}
    told = (await client.post("/v1/placements:explain", headers=ben.headers, json=asked)).json()
    assert (told["outcome"], told["reason"]) == ("waits", "reserved")
    short = await fleet.create(
        ben.headers, "short", gpus=1, stop_at=(NOW + timedelta(hours=1)).isoformat(), queue=False
    )
    assert short.json()["status"] == "starting", short.text
    await fleet.act(ben.headers, short.json()["id"], "stop")
    await agent.obey()

    async with app.state.database.sessions() as db:
        await db.execute(text("UPDATE reservations SET starts_at = now() - interval '1 minute'"))
        await db.commit()
    await reservations_loop.turn(work)
    held = await client.get(f"/v1/reservations/{made['id']}", headers=ada.headers)
    assert held.json()["state"] == "active"
    mine = (await fleet.create(ada.headers, "mine", gpus=1)).json()
    assert (mine["status"], mine["reservation_id"]) == ("starting", made["id"])
    assert mine["stop_at"] is not None
    used = (await client.get(f"/v1/reservations/{made['id']}", headers=ada.headers)).json()
    assert (used["gpus_in_use"], used["used_at"] is not None) == (1, True)


async def test_unused_reservation_is_given_back_after_its_grace_and_an_ended_one_at_its_end(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1", gpus=2)
    ada, ben = await actors.user("ada"), await actors.user("ben", customer="other")
    made = (await reserve(client, ada.headers, 1, hours=(1, 5))).json()
    other = (await reserve(client, ada.headers, 1, hours=(1, 2))).json()
    async with app.state.database.sessions() as db:
        await db.execute(
            text(
                "UPDATE reservations SET created_at = now() - interval '1 day', "
                "starts_at = now() - interval '1 hour'"
            )
        )
        await db.execute(
            text("UPDATE reservations SET ends_at = now() WHERE id = :key"), {"key": other["id"]}
        )
        await db.commit()
    waiting = (await fleet.create(ben.headers, "waiting", gpus=2)).json()
    assert waiting["status"] == "pending"
    await reservations_loop.turn(work)
    states = {
        key: (await client.get(f"/v1/reservations/{key}", headers=ada.headers)).json()["state"]
        for key in (made["id"], other["id"])
    }
    assert states == {made["id"]: "unused", other["id"]: "ended"}
    await turns.place_pending(work)
    assert (await fleet.get(ben.headers, waiting["id"]))["status"] == "starting"


async def test_start_runs_in_the_reservation_that_it_names_and_stops_with_it(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada, ben = await actors.user("ada"), await actors.user("ben", customer="other")
    made = (await reserve(client, ada.headers, 1, hours=(2, 4))).json()
    key = (await fleet.create(ada.headers, "mine", gpus=0)).json()["id"]
    await fleet.act(ada.headers, key, "stop")
    await agent.obey()
    path = f"/v1/environments/{key}:start"
    foreign = (await reserve(client, ben.headers, 1, hours=(30, 31))).json()["id"]
    asked = {"gpus": 1, "reservation": foreign}
    assert (await client.post(path, headers=ada.headers, json=asked)).status_code == 404
    started = await client.post(path, headers=ada.headers, json=asked | {"reservation": made["id"]})
    assert started.status_code == 200, started.text
    found = started.json()
    assert (found["reservation_id"], found["status"]) == (made["id"], "pending")
    assert (found["start_at"], found["stop_at"]) == (made["starts_at"], made["ends_at"])


async def test_new_start_asks_for_a_reservation_by_what_it_asks_for_now(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    made = (await reserve(client, ada.headers, 1, hours=(2, 4))).json()
    async with app.state.database.sessions() as db:
        await db.execute(text("UPDATE reservations SET starts_at = now() - interval '1 minute'"))
        await db.commit()
    await reservations_loop.turn(work)
    share = 16 * 2**30
    env = (await fleet.create(ada.headers, gpus=1, gpu_memory_bytes=share)).json()
    assert env["reservation_id"] is None, "a reservation is of whole GPUs"
    for asked, expected in ((0, made["id"]), (share, None)):
        await fleet.act(ada.headers, env["id"], "stop")
        await agent.obey()
        again = await fleet.act(ada.headers, env["id"], "start", gpu_memory_bytes=asked)
        assert again.json()["reservation_id"] == expected, again.text
