"""Tasks that run and write, with hollow agents."""

from __future__ import annotations

import base64
from typing import Any

from hollow_agent import Fleet, HollowAgent

from remotegpu_server.testing import Person


async def running(fleet: Fleet, person: Person, agent: HollowAgent, **spec: Any) -> tuple[str, str]:
    """Ids of a new task and of its attempt, which runs."""
    body = {"image": "base", "command": ["train"]} | spec
    made = await fleet.client.post("/v1/tasks", headers=person.headers, json=body)
    (attempt,) = await agent.claim()
    for verb in ("accept", "start"):
        assert (await agent.attempt(attempt["id"], verb)).status_code < 300
    return made.json()["tasks"][0]["id"], attempt["id"]


async def write(agent: HollowAgent, attempt: str, sequence: int, data: bytes, **more: Any) -> dict[str, Any]:
    answer = await agent.attempt(
        attempt, "logs", sequence=sequence, data=base64.b64encode(data).decode(), **more
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def text_of(fleet: Fleet, person: Person, task: str, **params: Any) -> bytes:
    answer = await fleet.client.get(f"/v1/tasks/{task}/logs", headers=person.headers, params=params)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"])
