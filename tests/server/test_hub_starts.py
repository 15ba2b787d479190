"""Asking the hub for the start of a kept place, where the hub is away, refuses, hangs, or the server dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.fernet import Fernet
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from remotegpu_server.hub_starts import loop
from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors

TOKEN = "a-token-for-starts"


@dataclass
class ScriptedHub:
    """Answers as told, one answer for each request; the last one stays."""

    url: str = ""
    answers: list[Response | None] = field(default_factory=list)
    """``None``: it hangs until the test is over."""
    asked: list[str] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"token {TOKEN}"
        self.asked.append(request.url.path)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if answer is None:
            await self.over.wait()
        return answer or Response(status_code=503)


@pytest.fixture
async def hub() -> AsyncIterator[ScriptedHub]:
    made = ScriptedHub()
    routes = [Route("/hub/api/users/{path:path}", made.start, methods=["POST"])]
    config = uvicorn.Config(
        Starlette(routes=routes), port=0, log_config=None, lifespan="off", ws="none", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn tells nobody
        await asyncio.sleep(0.01)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/hub/api"
    yield made
    made.over.set()
    server.should_exit = True
    await task


@pytest.fixture
def settings(database_url: str, hub: ScriptedHub) -> Settings:
    return Settings(
        database_url=database_url,
        secret_key=Fernet.generate_key().decode(),
        workload_url="http://remotegpu.test",
        hub_api_url=hub.url,
        hub_api_token=TOKEN,
    )


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PAUSE_S", 0.0)


@dataclass
class Place:
    """Ada's default server has its turn, on the one host."""

    fleet: Fleet
    app: FastAPI
    agent: HollowAgent
    hub_headers: dict[str, str]
    id: str

    async def environment(self) -> dict[str, Any]:
        answer = await self.fleet.client.get(f"/v1/environments/{self.id}", headers=self.hub_headers)
        found: dict[str, Any] = answer.json()
        return found

    async def row(self) -> dict[str, Any] | None:
        async with self.app.state.database.sessions() as db:
            found = await db.execute(
                text("SELECT state, attempts, last_error, next_attempt_at > now() AS later FROM hub_starts")
            )
            row = found.mappings().one_or_none()
            return dict(row) if row else None

    async def forget_the_pause(self) -> None:
        async with self.app.state.database.sessions() as db:
            await db.execute(text("UPDATE hub_starts SET next_attempt_at = now()"))
            await db.commit()

    async def spawner_comes(self) -> httpx.Response:
        """What the hub's spawner does when the hub has taken the request on."""
        return await self.fleet.act(self.hub_headers, self.id, "start", gpus=1)


async def kept(fleet: Fleet, actors: Actors, *, who: str, name: str = "default") -> dict[str, Any]:
    """The environment of a waiting hub server whose place is kept."""
    await actors.user(who)
    headers = {"Authorization": f"Bearer {await actors.hub()}", "X-RemoteGPU-On-Behalf-Of": who}
    made = (await fleet.create(headers, name, gpus=1)).json()
    assert made["status"] == "pending"
    body = {"hub_user": who, "hub_server": "" if name == "default" else name}
    path = f"/v1/environments/{made['id']}:keep-place"
    answer = await fleet.client.post(path, headers=headers, json=body)
    assert answer.status_code == 200, answer.text
    return made | {"headers": headers}


@pytest.fixture
async def place(fleet: Fleet, actors: Actors, app: FastAPI, work: Work) -> Place:
    agent = await fleet.host("h1", gpus=1)
    holder = await actors.user("holder")
    held = (await fleet.create(holder.headers, gpus=1)).json()
    mine = await kept(fleet, actors, who="ada")
    await fleet.act(holder.headers, held["id"], "stop")
    await agent.obey()
    await turns.place_pending(work)
    made = Place(fleet, app, agent, mine["headers"], mine["id"])
    assert (await made.environment())["reason"] == "hub_start"
    return made


async def test_hub_that_takes_it_on_is_asked_once_and_its_spawner_gets_the_place(
    hub: ScriptedHub, place: Place, work: Work
) -> None:
    hub.answers = [Response(status_code=202)]
    await loop.start_due(work)
    await loop.start_due(work)
    assert hub.asked == ["/hub/api/users/ada/server"]
    assert (await place.spawner_comes()).json()["status"] == "starting"
    await loop.start_due(work)
    assert await place.row() is None
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (JSONResponse({"message": "You may hold 0 GPUs at once."}, 403), "403: You may hold 0 GPUs at once."),
        (JSONResponse({"message": 7}, 400), "400"),
        (JSONResponse(["odd"], 404), "404"),
        (Response("<html>Bad gateway</html>", 502), "502"),
        (Response(status_code=302, headers={"Location": "https://login.example.org"}), "302"),
        (None, "does not answer (ReadTimeout)"),
    ],
    ids=["forbidden", "odd-message", "odd-body", "proxy", "redirect", "hangs"],
)
async def test_refusal_and_silence_are_written_down_and_tried_again(
    hub: ScriptedHub,
    place: Place,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    answer: Response | None,
    said: str,
) -> None:
    monkeypatch.setattr(loop, "ANSWER_S", 0.3)
    hub.answers = [answer, Response(status_code=201)]
    await loop.start_due(work)
    row = await place.row()
    assert row is not None
    assert row["last_error"].endswith(said)
    assert (row["state"], row["attempts"], row["later"]) == ("due", 1, False)
    await loop.start_due(work)
    assert len(hub.asked) == 2
    assert (await place.environment())["status"] == "pending", "the place is still kept"
    assert (await place.spawner_comes()).json()["status"] == "starting"


async def test_hub_that_is_down_for_a_while_still_gets_the_request(
    hub: ScriptedHub, place: Place, work: Work
) -> None:
    hub.answers = [Response(status_code=202)]
    away = replace(work, settings=replace(work.settings, hub_api_url="http://127.0.0.1:9/hub/api"))
    for _ in range(loop.ATTEMPTS - 1):
        await loop.start_due(away)
    row = await place.row()
    assert row is not None
    assert row["last_error"] == "the hub does not answer (ConnectError)"
    await loop.start_due(work)
    assert hub.asked == ["/hub/api/users/ada/server"]
    assert (await place.spawner_comes()).json()["status"] == "starting"


async def test_limit_of_attempts_gives_the_place_up_tells_why_and_lets_the_next_one_in(
    hub: ScriptedHub, place: Place, work: Work, fleet: Fleet, actors: Actors
) -> None:
    hub.answers = [JSONResponse({"message": "No such user."}, 404)]
    behind = await actors.user("behind")
    waiting = (await fleet.create(behind.headers, gpus=1)).json()
    assert waiting["status"] == "pending"
    for _ in range(loop.ATTEMPTS + 1):
        await loop.start_due(work)
    assert len(hub.asked) == loop.ATTEMPTS
    ended = await place.environment()
    assert (ended["status"], ended["reason"]) == ("stopped", "hub_gave_up")
    assert "the hub answered 404: No such user. Start it again" in ended["message"].replace("..", ".")
    assert await place.row() is None
    told = await fleet.client.get("/v1/notifications", headers=place.hub_headers)
    (one,) = [it for it in told.json()["items"] if it["kind"] == "environment.hub_gave_up"]
    assert (one["level"], "No such user" in one["message"]) == ("error", True)
    await turns.place_pending(work)
    answer = await fleet.client.get(f"/v1/environments/{waiting['id']}", headers=behind.headers)
    assert answer.json()["status"] == "starting"
    await loop.start_due(work)
    assert len(hub.asked) == loop.ATTEMPTS, "nobody is asked for it any more"


async def test_hub_that_said_yes_and_never_came_is_asked_again_and_then_given_up(
    hub: ScriptedHub, place: Place, work: Work
) -> None:
    hub.answers = [Response(status_code=202)]
    for number in range(loop.ATTEMPTS):
        await loop.start_due(work)
        assert len(hub.asked) == number + 1
        row = await place.row()
        assert row is not None
        assert row["later"], "it has a minute to come"
        await place.forget_the_pause()
    await loop.start_due(work)
    ended = await place.environment()
    assert (ended["status"], ended["reason"]) == ("stopped", "hub_gave_up")
    assert "its start never came through" in ended["message"]


async def test_server_killed_between_asking_and_recording_asks_again_after_the_claim(
    hub: ScriptedHub, place: Place, work: Work
) -> None:
    hub.answers = [None, Response(status_code=202)]
    dying = asyncio.create_task(loop.start_due(work))
    while not hub.asked:  # noqa: ASYNC110  the hub stands for a foreign process
        await asyncio.sleep(0.01)
    dying.cancel()  # nothing after the request is written
    await asyncio.gather(dying, return_exceptions=True)
    row = await place.row()
    assert row is not None
    assert (row["attempts"], row["last_error"], row["later"]) == (1, None, True)
    await loop.start_due(work)
    assert len(hub.asked) == 1, "not at once: the hub may be starting it"
    await place.forget_the_pause()
    await loop.start_due(work)
    assert len(hub.asked) == 2
    assert (await place.spawner_comes()).json()["status"] == "starting"


async def test_place_that_was_taken_over_meanwhile_is_neither_put_off_nor_given_up(
    hub: ScriptedHub, place: Place, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last attempt fails, and the spawner of an earlier one comes before that is recorded."""
    hub.answers = [Response(status_code=503)]
    for _ in range(loop.ATTEMPTS):
        await loop.start_due(work)
    claimed = await loop._claim(work)
    assert [one.attempts for one in claimed] == [loop.ATTEMPTS + 1]
    await place.agent.register()
    assert (await place.spawner_comes()).json()["status"] == "starting"
    await loop._give_up(work, claimed[0])
    assert (await place.environment())["status"] == "starting"


async def test_place_kept_anew_after_the_claim_keeps_its_attempts_and_its_turn(
    hub: ScriptedHub, place: Place, work: Work, fleet: Fleet, actors: Actors
) -> None:
    hub.answers = [Response(status_code=503)]
    for _ in range(loop.ATTEMPTS):
        await loop.start_due(work)
    (last,) = await loop._claim(work)
    path = f"/v1/environments/{place.id}:keep-place"
    body = {"hub_user": "ada", "hub_server": ""}
    assert (await fleet.client.post(path, headers=place.hub_headers, json=body)).status_code == 200
    await loop._give_up(work, last)
    row = await place.row()
    assert row is not None
    assert (row["state"], row["attempts"]) == ("waiting", 0)
    assert (await place.environment())["status"] == "pending"


async def test_hub_that_hangs_is_asked_for_all_at_once_and_costs_nobody_an_attempt_more(
    hub: ScriptedHub, work: Work, fleet: Fleet, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "ANSWER_S", 4)
    holder = await actors.user("holder")
    agent = await fleet.host("h1", gpus=6)
    held = (await fleet.create(holder.headers, gpus=6)).json()["id"]
    for number in range(6):
        await kept(fleet, actors, who=f"user{number}", name="second")
    await fleet.act(holder.headers, held, "stop")
    await agent.obey()
    await turns.place_pending(work)
    hub.answers = [None]
    one_pass = asyncio.create_task(loop.start_due(work))
    async with asyncio.timeout(4):  # one after the other, the second would not be asked before that
        while len(hub.asked) < 6:  # noqa: ASYNC110 - the requests come from outside
            await asyncio.sleep(0.02)
    await one_pass
    assert sorted(hub.asked) == [f"/hub/api/users/user{number}/servers/second" for number in range(6)]


async def test_place_that_waits_for_the_hub_keeps_one_gpu_and_no_more(
    hub: ScriptedHub, work: Work, fleet: Fleet, actors: Actors
) -> None:
    agent, holder = await fleet.host("h1", gpus=3), await actors.user("holder")
    held = (await fleet.create(holder.headers, gpus=3)).json()["id"]
    called = [await kept(fleet, actors, who=who) for who in ("ada", "bob")]
    eve, dan = await actors.user("eve"), await actors.user("dan")
    behind = (await fleet.create(eve.headers, gpus=1)).json()["id"]
    await fleet.act(holder.headers, held, "stop")
    await agent.obey()
    for _ in range(2):
        await turns.place_pending(work)
    seen = [await fleet.get(fleet.admin, one["id"]) for one in called]
    assert [one["reason"] for one in seen] == ["hub_start", "hub_start"]
    assert (await fleet.get(eve.headers, behind))["status"] == "starting"
    late = (await fleet.create(dan.headers, gpus=1)).json()
    assert (late["status"], "2 requests ahead" in late["message"]) == ("pending", True), late["message"]
    for one in called:
        started = await fleet.act(one["headers"], one["id"], "start", gpus=1)
        assert started.json()["status"] == "starting"
    await turns.place_pending(work)
    assert (await fleet.get(dan.headers, late["id"]))["status"] == "pending"
