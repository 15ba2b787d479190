"""A server that dies around the commit of a change: asked again, the end is the same as if it had not died.

Before the commit nothing has happened, and the repetition does it; after the commit the repetition changes
nothing. Creates are in ``test_crash_points.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from dying import Died, DyingFaultPoints
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.fault_points import COMMITS
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import Actors

_END = text(
    """
    SELECT (SELECT array_agg((status, desired, observed, generation, reason, deadline_at)::text ORDER BY name)
            FROM environments) AS environments,
        (SELECT array_agg((released_at IS NULL, release_proof)::text ORDER BY id) FROM placements) AS held,
        (SELECT array_agg((operational, drain_deadline IS NULL)::text) FROM hosts) AS hosts,
        (SELECT array_agg((resource, limit_value)::text ORDER BY resource) FROM quotas) AS limits,
        (SELECT count(*) FROM events WHERE kind = 'environment.status') AS moves
    """
)


@dataclass
class Scene:
    """One environment that runs until a stop time, on the only host."""

    fleet: Fleet
    agent: HollowAgent
    ada: dict[str, str]
    key: str

    async def ask(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> httpx.Response:
        return await self.fleet.client.request(method, path, json=body, headers=headers)


async def _stop(scene: Scene) -> httpx.Response:
    return await scene.fleet.act(scene.ada, scene.key, "stop")


async def _delete(scene: Scene) -> httpx.Response:
    return await scene.ask("DELETE", f"/v1/environments/{scene.key}", scene.ada)


async def _extend(scene: Scene) -> httpx.Response:
    headers = scene.ada | {"Idempotency-Key": "once"}
    return await scene.ask("POST", f"/v1/environments/{scene.key}:extend", headers, {"by_s": 600})


async def _limit(scene: Scene) -> httpx.Response:
    return await scene.ask("PUT", "/v1/quotas/user/ada", scene.fleet.admin, {"limits": {"gpus": 3}})


async def _cordon(scene: Scene) -> httpx.Response:
    return await scene.ask("POST", "/v1/hosts/h1:cordon", scene.fleet.admin)


async def _drain(scene: Scene) -> httpx.Response:
    return await scene.ask("POST", "/v1/hosts/h1:drain", scene.fleet.admin, {"deadline_s": 60})


async def _exited(scene: Scene) -> httpx.Response:
    return await scene.agent.observe(scene.key, "exited", exit_code=1)


async def _absent(scene: Scene) -> httpx.Response:
    return await scene.agent.observe(scene.key, "absent")


async def _nothing(scene: Scene) -> None:
    return None


Change = Callable[[Scene], Awaitable[httpx.Response]]
CHANGES: dict[str, tuple[Callable[[Scene], Awaitable[object]], Change]] = {
    "stop": (_nothing, _stop),
    "delete": (_nothing, _delete),
    "extend": (_nothing, _extend),
    "quota": (_nothing, _limit),
    "cordon": (_nothing, _cordon),
    "drain": (_nothing, _drain),
    "agent: exited": (_nothing, _exited),
    "agent: absent after a stop": (_stop, _absent),
    "agent: absent after a delete": (_delete, _absent),
    "agent: absent after it failed": (_exited, _absent),
}
"""What comes before it, and the change."""


@pytest.fixture
async def scene(fleet: Fleet, actors: Actors) -> Scene:
    agent = await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    await fleet.limit("user", "ada", gpus=2)
    key = (await fleet.create(ada.headers, gpus=1, max_lifetime_s=3600)).json()["id"]
    await agent.obey()
    return Scene(fleet, agent, ada.headers, key)


@pytest.mark.parametrize("label", sorted(COMMITS))
@pytest.mark.parametrize("name", CHANGES)
async def test_change_that_dies_and_is_asked_again_ends_like_one_that_did_not(
    scene: Scene, app: FastAPI, name: str, label: str
) -> None:
    prepare, change = CHANGES[name]
    await prepare(scene)
    before = await _end(app)
    app.state.fault_points = DyingFaultPoints(label)
    with pytest.raises(Died):
        await change(scene)
    after = await _end(app)
    assert (after == before) == (label == "before_commit"), "before the commit nothing has happened"
    answer = await change(scene)
    assert answer.status_code in _fine(name), answer.text
    end = await _end(app)
    if label == "after_commit":
        assert end == after, "the repetition had an effect"
    assert end != before
    again = await change(scene)
    assert again.status_code in _fine(name), again.text
    assert await _end(app) == end
    async with app.state.database.sessions() as db:
        await assert_invariants(db)


def _fine(name: str) -> set[int]:
    """A delete that was done answers that there is nothing; an agent's late word that it is old."""
    return {"delete": {204, 404}, "agent: absent after a delete": {204, 409}}.get(name, {200, 204})


async def _end(app: FastAPI) -> Any:
    async with app.state.database.sessions() as db:
        return (await db.execute(_END)).one()
