"""A server that dies around the commit of any step of an attempt: said again, it ends exactly once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from dying import Died, DyingFaultPoints
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy import text

from remotegpu_server.fault_points import COMMITS
from remotegpu_server.testing import Actors

Step = Callable[[HollowAgent, str], Awaitable[httpx.Response | None]]


async def _claim(agent: HollowAgent, attempt_id: str) -> None:
    (found,) = await agent.claim(request_id="the-only-one")
    assert found["id"] == attempt_id


def _say(verb: str, **body: Any) -> Step:
    async def step(agent: HollowAgent, attempt_id: str) -> httpx.Response:
        return await agent.attempt(attempt_id, verb, **body)

    return step


STEPS: dict[str, Step] = {
    "claim": _claim,
    "accept": _say("accept"),
    "start": _say("start"),
    "renew": _say("renew"),
    "progress": _say("progress", progress=0.5, message="half"),
    "complete": _say("complete", status="failed", exit_code=3, reason="exit_code"),
    "release": _say("release"),
}
"""In their order. Output has two steps of its own: ``test_task_logs.py``."""
_END = text(
    """
    SELECT (SELECT array_agg((status, reason, exit_code, generation, finished_at IS NULL)::text)
            FROM tasks WHERE id = :task),
        (SELECT array_agg((status, number, finished_at IS NULL)::text) FROM attempts WHERE task_id = :task),
        (SELECT array_agg((released_at IS NULL, release_proof)::text)
            FROM placements WHERE attempt_id = :attempt),
        (SELECT array_agg((released_at IS NULL)::text) FROM allocations WHERE attempt_id = :attempt),
        (SELECT array_agg(data ->> 'to' ORDER BY id)
            FROM events WHERE kind = 'task.status' AND subject_id = :task)
    """
)


@pytest.mark.parametrize("label", sorted(COMMITS))
async def test_attempt_ends_once_at_whichever_step_the_server_dies(
    fleet: Fleet, actors: Actors, app: FastAPI, label: str
) -> None:
    ends = {await _live_through(fleet, actors, app, dies_at=step, label=label) for step in STEPS}
    (end,) = ends
    assert end == (
        ("(failed,exit_code,3,1,f)",),
        ("(failed,1,f)",),
        ("(f,absent)",),
        ("false",),
        ("assigned", "running", "failed"),
    )


async def _live_through(
    fleet: Fleet, actors: Actors, app: FastAPI, *, dies_at: str, label: str
) -> tuple[Any, ...]:
    agent, ada = await fleet.host(f"host-{dies_at}", gpus=1), await actors.user(f"ada-{dies_at}")
    body = {"image": "base", "command": ["x"], "gpus": 1}
    made = await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)
    task = made.json()["tasks"][0]
    assert task["hosts"][0]["host_name"] == f"host-{dies_at}", made.text
    async with app.state.database.sessions() as db:
        found = text("SELECT id FROM attempts WHERE task_id = :task")
        attempt_id = await db.scalar(found, {"task": task["id"]})
    for name, step in STEPS.items():
        if name == dies_at:
            app.state.fault_points = DyingFaultPoints(label)
            with pytest.raises(Died):
                await step(agent, attempt_id)
        answer = await step(agent, attempt_id)
        assert answer is None or answer.status_code < 300, answer.text
    for _ in range(3):
        assert (await STEPS["complete"](agent, attempt_id)).status_code == 204  # type: ignore[union-attr]
    await fleet.client.post(f"/v1/hosts/host-{dies_at}:cordon", headers=fleet.admin)
    async with app.state.database.sessions() as db:
        end = (await db.execute(_END, {"task": task["id"], "attempt": attempt_id})).one()
    return tuple(tuple(column) for column in end)
