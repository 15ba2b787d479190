"""Schemathesis over the whole API: what the OpenAPI document says is what the server does.

Every operation gets data that fits its schema and data that does not, as an admin, a member, an agent and
nobody. No 5xx (but the 503 that says that nothing is free), no status or body that the document does not
describe, no wrong data accepted. ``REMOTEGPU_EXAMPLES=100`` asks more of each, freshly.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
import schemathesis
from cryptography.fernet import Fernet
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from hypothesis import HealthCheck, Phase, given, settings, strategies
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import (
    CheckContext,
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response
from schemathesis.generation.case import Case
from schemathesis.schemas import APIOperation

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server.app import create_app
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors, Person
from remotegpu_server.tokens import service as tokens

EXAMPLES = int(os.environ.get("REMOTEGPU_EXAMPLES", "0"))
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
ROUNDS = {POSITIVE: 10, NEGATIVE: 6}
"""Requests to each operation."""
CALLERS = ["admin", "admin", "admin", "member", "member", "nobody", "agent"]
AGENT_CALLERS = ["agent", "agent", "agent", "admin", "nobody"]
MAY_BE_AWAY = {"no_capacity"}
"""Codes of a 503 that are an answer, not a failure."""
WAITS = ("/v1/environments/{environment_id}/logs", "/v1/tasks/{task_id}/logs:follow")
"""Asked about an environment that runs, it waits for its agent; here it is asked about unknown ones only."""


def no_failure_of_the_server(_context: CheckContext, response: Response, _case: Case) -> None:
    """Like schemathesis' own, but a 503 with one of the codes that are answers is one."""
    if response.status_code < 500:
        return
    code = response.json().get("error")
    assert response.status_code == 503, f"server failed: {response.text}"
    assert code in MAY_BE_AWAY, f"unavailable: {response.text}"


def wrong_data_is_rejected(context: CheckContext, response: Response, case: Case) -> bool | None:
    """Schemathesis' own, which does not know that a body can be too large."""
    return None if response.status_code == 413 else negative_data_rejection(context, response, case)


CHECKS = [
    no_failure_of_the_server,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    wrong_data_is_rejected,
]


@dataclass
class Target:
    """A running app with something of everything in it, and an event loop to reach it."""

    runner: asyncio.Runner
    app: FastAPI
    client: httpx.AsyncClient
    people: dict[str, Person] = field(default_factory=dict)
    agent: HollowAgent | None = None
    known: dict[str, list[str]] = field(default_factory=dict)
    """Values for parameters of paths that lead to something."""

    async def headers(self, caller: str) -> dict[str, str]:
        """A fresh token each time: some operations end the one that they are called with."""
        if caller == "nobody":
            return {}
        if caller == "agent":
            assert self.agent is not None
            return self.agent.headers
        async with self.app.state.database.sessions() as db:
            minted = await tokens.mint(
                db,
                kind=TokenKind.USER,
                scopes=(Scope.ALL,),
                name="fuzz",
                user_id=self.people[caller].id,
            )
            await db.commit()
        return {"Authorization": f"Bearer {minted.secret}"}

    async def fill(self) -> None:
        actors = Actors(self.app.state.database)
        self.people = {"admin": await actors.admin(), "member": await actors.user("ada")}
        admin, member = self.people["admin"], self.people["member"]
        fleet = Fleet(client=self.client, admin=admin.headers)
        await fleet.image()
        self.agent = await fleet.host("h1", gpus=2)
        await self.agent.heartbeat()
        made = (await fleet.create(member.headers, gpus=1)).json()
        other = await actors.user("bob", customer="other")
        body = {"image": "base", "command": ["train"], "gpus": 1}
        task = (await self.client.post("/v1/tasks", headers=member.headers, json=body)).json()["tasks"][0]
        (attempt,) = await self.agent.claim()
        array = await self.client.post(
            "/v1/tasks", headers=member.headers, json=body | {"array": {"size": 2}}
        )
        schedule = {"name": "daily", "cron": "0 5 * * *", "task": {"image": "base", "command": ["x"]}}
        daily = await self.client.post("/v1/task-schedules", headers=member.headers, json=schedule)
        hook_body = {"url": "https://example.org/x", "events": ["job.failed"]}
        hook = await self.client.post("/v1/webhooks", headers=member.headers, json=hook_body)
        self.known = {
            "environment_id": [made["id"]],
            "workload_id": [made["id"]],
            "task_id": [task["id"]],
            "array_id": [array.json()["array_id"]],
            "schedule_id": [daily.json()["id"]],
            "attempt_id": [attempt["id"]],
            "workspace": [made["workspace_id"]] if "workspace_id" in made else [],
            "user": ["bob", other.id],
            "customer": ["other"],
            "host": ["h1"],
            "image": ["base"],
            "subject": ["user", "customer"],
            "subject_id": ["ada", "default"],
            "rule": ["gpu-xid"],
            "webhook_id": [hook.json()["webhook"]["id"]],
            "alert_id": [await actors.alert()],
        }

    async def send(self, case: Case, caller: str) -> httpx.Response:
        asked = case.as_transport_kwargs(base_url="http://remotegpu.test")
        asked = {
            key: asked[key] for key in ("method", "url", "params", "json", "data", "headers") if key in asked
        }
        if "data" in asked:
            asked["content"] = asked.pop("data")
        headers = dict(asked.pop("headers", None) or {})
        return await self.client.request(**asked, headers=headers | await self.headers(caller), timeout=30)


@pytest.fixture
def target(cluster: EmbeddedPostgres, database_url: str) -> Iterator[Target]:
    app = create_app(
        Settings(database_url=database_url, secret_key=Fernet.generate_key().decode(), pool_size=3),
        run_loops=False,
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=transport, base_url="http://remotegpu.test")
        made = Target(runner=runner, app=app, client=client)
        runner.run(made.fill())
        yield made
        runner.run(_holds(app))
        runner.run(client.aclose())
        runner.run(app.state.database.close())


async def _holds(app: FastAPI) -> None:
    async with app.state.database.sessions() as db:
        await assert_invariants(db)


@pytest.mark.timeout(300 if not EXAMPLES else 36000)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_operation_does_what_the_document_says(target: Target) -> None:
    schema = schemathesis.openapi.from_dict(target.app.openapi())
    problems: list[str] = []
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode, examples in ROUNDS.items():
            problems += _ask(target, operation, mode, EXAMPLES or examples)
    assert not problems, "\n\n".join(problems)


def _ask(
    target: Target, operation: APIOperation, mode: schemathesis.GenerationMode, examples: int
) -> list[str]:
    """Problems of one operation, the first of each kind."""
    problems: dict[str, str] = {}
    callers = AGENT_CALLERS if operation.path.startswith("/v1/agent/") else CALLERS

    @settings(
        max_examples=examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode),
        caller=strategies.sampled_from(callers),
        data=strategies.data(),
    )
    def ask(case: Case, caller: str, data: strategies.DataObject) -> None:
        if mode is POSITIVE:
            _lead_somewhere(target, operation, case, data)
        response = target.runner.run(target.send(case, caller))
        try:
            case.validate_response(response, checks=CHECKS)
        except (FailureGroup, AssertionError) as failure:
            causes = failure.exceptions if isinstance(failure, FailureGroup) else [failure]
            for cause in causes:
                kind = f"{operation.label} {type(cause).__name__} {response.status_code}"
                problems.setdefault(
                    kind, f"{kind} as {caller}\n{cause}\n{case.as_curl_command()}\n{response.text}"
                )

    with contextlib.suppress(Unsatisfiable):  # no wrong data exists for an operation without parameters
        ask()
    return [text[:2500] for text in problems.values()]


def _lead_somewhere(target: Target, operation: APIOperation, case: Case, data: strategies.DataObject) -> None:
    """Mostly name something that exists, and never hold the test up."""
    for name in case.path_parameters or {}:
        values = target.known.get(name)
        if values and operation.path not in WAITS and data.draw(strategies.integers(0, 3)):
            case.path_parameters[name] = data.draw(strategies.sampled_from(values))
    if "wait_s" in (case.query or {}):
        case.query["wait_s"] = 0
    if isinstance(case.body, dict) and "wait_s" in case.body:
        case.body["wait_s"] = 0
