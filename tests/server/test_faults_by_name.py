"""Faults by their names in the reliability rules, where no other file is about them: F36, F44, F47, M12."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.customers import loop as suspensions
from remotegpu_server.environments.service import turns as environments
from remotegpu_server.hosts import loop as hosts
from remotegpu_server.hosts.service import operate
from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.testing import Actors


def _poison(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, poisoned: str) -> None:
    """``module.name`` raises what nobody expects whenever it is about this one."""
    real = getattr(module, name)

    async def raises(*given: Any, **named: Any) -> Any:
        if poisoned in (*given, *named.values()):
            raise RuntimeError("poisoned")
        return await real(*given, **named)

    monkeypatch.setattr(module, name, raises)


async def _waiting(fleet: Fleet, headers: dict[str, str], agent: HollowAgent) -> list[str]:
    """Two requests that wait, and now could start."""
    await fleet.client.post("/v1/hosts/h1:cordon", headers=fleet.admin)
    keys = [(await fleet.create(headers, name, gpus=1)).json()["id"] for name in ("first", "second")]
    await fleet.client.post("/v1/hosts/h1:uncordon", headers=fleet.admin)
    return keys


async def test_f36_poisoned_request_at_the_head_does_not_hold_up_the_queue(
    fleet: Fleet, actors: Actors, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    first, second = await _waiting(fleet, ada.headers, agent)
    _poison(monkeypatch, environments, "start", first)
    await turns.place_pending(work)
    assert (await fleet.get(ada.headers, second))["status"] == "starting"
    assert (await fleet.get(ada.headers, first))["status"] == "pending"
    monkeypatch.undo()
    await turns.place_pending(work)
    assert (await fleet.get(ada.headers, first))["status"] == "starting"


@pytest.mark.parametrize("loop", ["suspensions", "drains"])
async def test_f36_poisoned_environment_does_not_keep_others_from_being_stopped(
    fleet: Fleet, actors: Actors, work: Work, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    keys = sorted([(await fleet.create(ada.headers, name, gpus=1)).json()["id"] for name in ("a", "b")])
    if loop == "suspensions":
        _poison(monkeypatch, suspensions, "_stop", keys[0])
        body = {"environments": "stop"}
        await fleet.client.post("/v1/users/ada:suspend", headers=fleet.admin, json=body)
        await suspensions.withdraw_and_stop(work)
    else:
        _poison(monkeypatch, operate, "stop_overdue", keys[0])
        await fleet.client.post("/v1/hosts/h1:drain", headers=fleet.admin, json={"deadline_s": 0})
        await hosts.follow_drains(work)
    seen = [(await fleet.get(fleet.admin, key))["status"] for key in keys]
    assert seen == ["starting", "stopping"]


async def test_f47_request_whose_workspace_and_owner_went_does_not_hold_up_the_queue(
    fleet: Fleet, actors: Actors, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    first, _ = await _waiting(fleet, ada.headers, agent)
    await fleet.client.post("/v1/hosts/h1:cordon", headers=fleet.admin)
    third = (await fleet.create(bob.headers, "third", gpus=1)).json()["id"]
    await fleet.client.post("/v1/hosts/h1:uncordon", headers=fleet.admin)
    answer = await fleet.client.delete("/v1/users/ada", headers=fleet.admin)
    assert answer.status_code == 204, answer.text
    for _ in range(2):  # the first withdraws, which wakes the next
        await turns.place_pending(work)
    assert (await fleet.get(bob.headers, third))["status"] == "starting"
    assert (await fleet.get(fleet.admin, first))["status"] == "stopped"


STATES = ["pending", "starting", "running", "failed", "unreachable", "stopping", "stopped"]


@pytest.mark.parametrize("verb", ["stop", "delete"])
@pytest.mark.parametrize("state", STATES)
async def test_f44_cancel_in_every_state_ends_as_wished_and_gives_everything_back(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, state: str, verb: str
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    if state == "pending":
        await fleet.client.post("/v1/hosts/h1:cordon", headers=fleet.admin)
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    if state in ("running", "unreachable"):
        await agent.obey()
    if state == "failed":
        await agent.observe(key, "exited", exit_code=1)
    if state in ("stopping", "stopped"):
        await fleet.act(ada.headers, key, "stop")
    if state == "stopped":
        await agent.obey()
    if state == "unreachable":
        async with app.state.database.sessions() as db:
            await db.execute(text("UPDATE hosts SET last_heartbeat_at = now() - interval '1 hour'"))
            await db.commit()
        await hosts.judge_silence(work)
    assert (await fleet.get(ada.headers, key))["status"] == state
    for _ in range(2):
        if verb == "stop":
            answer = await fleet.act(ada.headers, key, "stop")
            assert answer.status_code == 200, answer.text
        else:
            answer = await fleet.client.delete(f"/v1/environments/{key}", headers=ada.headers)
            assert answer.status_code in (204, 404), answer.text
    await agent.heartbeat()
    await agent.obey()
    async with app.state.database.sessions() as db:
        status = await db.scalar(text("SELECT status FROM environments WHERE id = :key"), {"key": key})
        held = await db.scalar(text("SELECT count(*) FROM placements WHERE released_at IS NULL"))
    wished = "deleted" if verb == "delete" else "failed" if state == "failed" else "stopped"
    assert (status, held) == (wished, 0)


async def test_m12_without_any_hint_and_with_lost_reports_the_passes_alone_converge(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every subset of an agent's reports about a start and a stop is lost; later ones say the same again."""
    monkeypatch.setattr(app.state.database.signals, "publish", lambda _hints: None)
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    for number, lost in enumerate(itertools.product((False, True), repeat=3)):
        key = (await fleet.create(ada.headers, f"n{number}", gpus=1)).json()["id"]
        await turns.place_pending(work)
        for seen, is_lost in zip(("pulling", "starting"), lost, strict=False):
            if not is_lost:
                assert (await agent.observe(key, seen)).status_code == 204
        await agent.obey()
        assert (await fleet.get(ada.headers, key))["status"] == "running"
        await fleet.client.delete(f"/v1/environments/{key}", headers=ada.headers)
        if not lost[2]:
            assert (await agent.observe(key, "stopping")).status_code == 204
        await agent.obey()
        assert await fleet.gpus_free() == 1
