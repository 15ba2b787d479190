"""Where the platform ends, moves or counts work, tasks are meant too: each place once, with hollow agents."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server.attempts import loop as attempts
from remotegpu_server.customers import loop as suspensions
from remotegpu_server.dedications import loop as dedications
from remotegpu_server.hosts import loop as hosts
from remotegpu_server.loops import Work
from remotegpu_server.queue import preemption, turns
from remotegpu_server.quotas import loop as quotas
from remotegpu_server.testing import Actors
from remotegpu_server.tokens import service as tokens


async def submit(fleet: Fleet, headers: dict[str, str], **spec: Any) -> str:
    body = {"image": "base", "command": ["train"], "gpus": 1, "max_retries": 0} | spec
    answer = await fleet.client.post("/v1/tasks", headers=headers, json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["tasks"][0]["id"])


async def show(fleet: Fleet, task_id: str) -> dict[str, Any]:
    answer = await fleet.client.get(f"/v1/tasks/{task_id}", headers=fleet.admin)
    found: dict[str, Any] = answer.json()
    return found


async def standing(fleet: Fleet, task_id: str) -> tuple[str, str]:
    found = await show(fleet, task_id)
    return found["status"], found["reason"]


async def run(agent: HollowAgent) -> str:
    """Claim one and start it; its id."""
    (attempt,) = await agent.claim()
    for verb in ("accept", "start"):
        assert (await agent.attempt(attempt["id"], verb)).status_code < 300
    return str(attempt["id"])


async def obey(agent: HollowAgent, attempt_id: str) -> str:
    """End it as it is told; the reason that it was given."""
    (level,) = [one for one in (await agent.poll()).json()["attempts"] if one["id"] == attempt_id]
    assert level["stop"], "its agent was told"
    ended = {"status": "cancelled", "exit_code": 143, "reason": "cancelled"}
    assert (await agent.complete(attempt_id, **ended)).status_code == 204
    assert (await agent.attempt(attempt_id, "release")).status_code == 204
    return str(level["stop_reason"])


async def sql(app: FastAPI, statement: str, **values: Any) -> Any:
    async with app.state.database.sessions() as db:
        answer = await db.execute(sa.text(statement), values)
        rows = answer.all() if answer.returns_rows else []
        await db.commit()
        return rows


async def act(fleet: Fleet, path: str, **body: Any) -> dict[str, Any]:
    answer = await fleet.client.post(path, headers=fleet.admin, json=body)
    assert answer.status_code < 300, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_drained_host_sends_its_tasks_back_at_the_deadline_and_no_retry_is_lost(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=2), await actors.user("ada")
    running = await submit(fleet, ada.headers)
    attempt = await run(agent)
    unclaimed = await submit(fleet, ada.headers)
    queued_at = (await show(fleet, running))["queued_at"]
    await act(fleet, "/v1/hosts/h1:drain", deadline_s=3600)
    told = await sql(app, "SELECT user_id FROM notifications WHERE kind = 'host.draining'")
    assert {row.user_id for row in told} == {ada.id}
    await hosts.follow_drains(work)
    assert (await standing(fleet, running))[0] == "running", "not before the deadline"
    busy = await fleet.client.post("/v1/hosts/h1:maintenance", headers=fleet.admin, json={"reason": "fans"})
    assert busy.status_code == 409
    await sql(app, "UPDATE hosts SET drain_deadline = now() - interval '1 s'")
    for _ in range(2):
        await hosts.follow_drains(work)
    assert await standing(fleet, unclaimed) == ("pending", "host_drained")
    assert await standing(fleet, running) == ("running", "host_drained")
    assert await obey(agent, attempt) == "host_drained"
    await hosts.follow_drains(work)
    assert len(await sql(app, "SELECT 1 FROM events WHERE kind = 'host.drained'")) == 1
    other = await fleet.host("h2", gpus=2)
    await turns.place_pending(work)
    again = await show(fleet, running)
    assert (again["status"], again["attempt"], again["queued_at"]) == ("assigned", 2, queued_at)
    assert await standing(fleet, unclaimed) == ("assigned", "placed")
    assert len(await other.claim()) == 2


async def test_cordon_lets_tasks_run(fleet: Fleet, actors: Actors, work: Work) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers)
    attempt = await run(agent)
    await act(fleet, "/v1/hosts/h1:cordon", reason="cables")
    await hosts.follow_drains(work)
    assert not (await agent.attempt(attempt, "renew")).json()["stop"]
    assert (await standing(fleet, task))[0] == "running"


@pytest.mark.parametrize("account", ["users/ada", "customers/physics"])
@pytest.mark.parametrize("policy", ["keep", "stop", "stop_after_grace"])
async def test_suspension_withdraws_what_waits_and_stops_what_runs_by_its_policy(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, account: str, policy: str
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada", customer="physics")
    running = await submit(fleet, ada.headers)
    attempt = await run(agent)
    waiting = await submit(fleet, ada.headers)
    await act(fleet, f"/v1/{account}:suspend", environments=policy, grace_s=3600)
    await suspensions.withdraw_and_stop(work)
    assert await standing(fleet, waiting) == ("cancelled", "suspended")
    assert (await show(fleet, running))["stop_requested"] == (policy == "stop")
    if policy == "stop_after_grace":
        for table in ("users", "customers"):
            await sql(
                app,
                f"UPDATE {table} SET stop_environments_at = now()"  # noqa: S608
                " WHERE stop_environments_at IS NOT NULL",
            )
        await suspensions.withdraw_and_stop(work)
    if policy == "keep":
        assert (await agent.complete(attempt)).status_code == 204
        assert (await agent.attempt(attempt, "release")).status_code == 204
        assert await standing(fleet, running) == ("succeeded", "succeeded")
    else:
        assert await obey(agent, attempt) == "suspended"
        assert await standing(fleet, running) == ("cancelled", "suspended")


async def test_used_up_gpu_hours_warn_and_stop_tasks(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    await fleet.client.put(
        f"/v1/quotas/user/{ada.id}",
        headers=fleet.admin,
        json={"limits": {"gpu_hours": 2}, "window_s": 360000},
    )
    task = await submit(fleet, ada.headers)
    attempt = await run(agent)
    await sql(app, "UPDATE allocations SET allocated_at = now() - interval '3 hours'")
    await quotas.enforce_gpu_hours(work)
    told = await sql(app, "SELECT user_id FROM notifications WHERE kind = 'quota.gpu_hours_used_up'")
    assert ada.id in {row.user_id for row in told}
    assert not (await show(fleet, task))["stop_requested"], "warned first"
    await sql(app, "UPDATE quotas SET exceeded_at = now() - interval '10 days' WHERE exceeded_at IS NOT NULL")
    for _ in range(2):
        await quotas.enforce_gpu_hours(work)
    assert await obey(agent, attempt) == "quota"
    assert await standing(fleet, task) == ("cancelled", "quota")
    stopped = await sql(app, "SELECT message FROM notifications WHERE kind = 'task.stopped'")
    assert [row.message for row in stopped] == ["task: Stopped because its GPU-hours are used up."]


async def test_end_of_a_dedication_sends_the_tenants_tasks_elsewhere(
    fleet: Fleet, actors: Actors, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada", customer="physics", role="owner")
    lent = await act(fleet, "/v1/dedications", host="h1", customer="physics", ends_at="2099-01-01T00:00:00Z")
    task = await submit(fleet, ada.headers)
    attempt = await run(agent)
    path = f"/v1/dedications/{lent['id']}"
    await act(fleet, f"{path}:reclaim", reason="needed", force=True)
    for _ in range(2):
        await dedications.follow(work)

    async def first_step() -> dict[str, Any]:
        answer = await fleet.client.get(path, headers=fleet.admin)
        found: dict[str, Any] = answer.json()["steps"][0]
        return found

    assert (await first_step())["detail"] == "1 tasks still hold something."
    assert await obey(agent, attempt) == "dedication_ended"
    await dedications.follow(work)
    assert (await first_step())["status"] == "done"
    assert await standing(fleet, task) == ("pending", "dedication_ended")
    await fleet.host("h2", gpus=1)
    await turns.place_pending(work)
    assert (await show(fleet, task))["hosts"][0]["host_name"] == "h2"


async def test_sick_gpu_is_told_to_the_owner_of_its_task_and_names_it(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers)
    bad = {"uuid": agent.gpus[0]["uuid"], "metrics": {}, "unhealthy_reason": "XID 79"}
    for _ in range(2):
        assert (await agent.heartbeat(gpus=[bad])).status_code == 200
    told = await sql(app, "SELECT user_id, data FROM notifications WHERE kind = 'gpu.health'")
    assert ada.id in {row.user_id for row in told}
    assert (told[0].data["environments"], told[0].data["tasks"]) == ([], [task])
    (gpu,) = (await fleet.client.get("/v1/gpus", headers=fleet.admin)).json()["items"]
    assert (gpu["task_id"], gpu["environment_id"], gpu["holder"]) == (task, None, "ada")
    eve = await actors.user("eve")
    (gpu,) = (await fleet.client.get("/v1/gpus", headers=eve.headers)).json()["items"]
    assert (gpu["task_id"], gpu["holder"], gpu["free"]) == (None, None, False)


async def test_preemptible_task_gives_way_with_notice_and_waits_again_with_its_age(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    willing = await submit(fleet, ada.headers, preemptible=True, min_run_s=3600)
    attempt = await run(agent)
    queued_at = (await show(fleet, willing))["queued_at"]
    urgent = await submit(fleet, fleet.admin, priority=1)
    await preemption.preempt(work)
    assert (await show(fleet, willing))["preempt_at"] is None, "it may run for its minimum"
    await sql(app, "UPDATE tasks SET min_run_s = 0")
    await preemption.preempt(work)
    assert (await show(fleet, willing))["preempt_at"] is not None
    told = await sql(app, "SELECT user_id FROM notifications WHERE kind = 'task.preempting'")
    assert [row.user_id for row in told] == [ada.id]
    await sql(app, "UPDATE tasks SET preempt_at = now() WHERE preempt_at IS NOT NULL")
    for _ in range(2):
        await preemption.preempt(work)
    assert await obey(agent, attempt) == "preempted"
    again = await show(fleet, willing)
    assert (again["status"], again["reason"], again["queued_at"]) == ("pending", "preempted", queued_at)
    await turns.place_pending(work)
    assert (await standing(fleet, urgent))[0] == "assigned"
    assert (await standing(fleet, willing))[0] == "pending"


async def test_preemption_of_a_task_is_taken_back_when_nobody_needs_it(
    fleet: Fleet, actors: Actors, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    willing = await submit(fleet, ada.headers, preemptible=True)
    await run(agent)
    urgent = await submit(fleet, fleet.admin, priority=1)
    await preemption.preempt(work)
    await fleet.client.post(f"/v1/tasks/{urgent}:stop", headers=fleet.admin)
    await preemption.preempt(work)
    assert (await show(fleet, willing))["preempt_at"] is None


async def test_task_preempts_an_environment(fleet: Fleet, actors: Actors, work: Work) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    willing = (await fleet.create(ada.headers, "willing", gpus=1, preemptible=True)).json()["id"]
    await agent.obey()
    await submit(fleet, fleet.admin, priority=1)
    await preemption.preempt(work)
    assert (await fleet.get(ada.headers, willing))["preempt_at"] is not None


async def test_end_of_its_reservation_ends_a_task_whether_it_runs_or_waits(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    running = await submit(fleet, ada.headers)
    waiting = await submit(fleet, ada.headers)
    await sql(app, "UPDATE tasks SET stop_at = now() + interval '5 minutes'")
    attempt = await run(agent)
    (row,) = await sql(app, "SELECT deadline_at = stop_at AS same FROM tasks WHERE id = :id", id=running)
    assert row.same, "the earlier of the two"
    await attempts.end_with_reservation(work)
    assert not (await show(fleet, running))["stop_requested"]
    await sql(app, "UPDATE tasks SET stop_at = now()")
    await attempts.end_with_reservation(work)
    assert await standing(fleet, waiting) == ("cancelled", "stop_at")
    assert await obey(agent, attempt) == "stop_at"
    assert await standing(fleet, running) == ("cancelled", "stop_at")
    assert len(await sql(app, "SELECT 1 FROM notifications WHERE kind = 'task.stopped'")) == 2


@pytest.mark.parametrize("verb", ["archive", "delete"])
async def test_workspace_with_a_live_task_is_neither_archived_nor_deleted(
    fleet: Fleet, actors: Actors, verb: str
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    made = await fleet.client.post("/v1/workspaces", headers=ada.headers, json={"name": "Team"})
    path = f"/v1/workspaces/{made.json()['id']}"

    async def end() -> int:
        if verb == "delete":
            answer = await fleet.client.delete(path, headers=ada.headers)
        else:
            answer = await fleet.client.post(f"{path}:archive", headers=ada.headers)
        return int(answer.status_code)

    task = await submit(fleet, ada.headers, workspace=made.json()["id"])
    assert await end() == 409
    attempt = await run(agent)
    await fleet.client.post(f"/v1/tasks/{task}:stop", headers=ada.headers)
    assert await end() == 409, "its host still has something of it"
    await obey(agent, attempt)
    assert await end() < 300


async def test_host_with_tasks_is_not_deleted_and_says_why(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    await submit(fleet, ada.headers)
    attempt = await run(agent)
    for detail in ("1 environments and tasks hold something", "past environments or tasks refer"):
        refused = await fleet.client.delete("/v1/hosts/h1", headers=fleet.admin)
        assert (refused.status_code, refused.json()["error"]) == (409, "in_use")
        assert detail in refused.json()["detail"]
        await agent.complete(attempt)
        await agent.attempt(attempt, "release")


async def test_capacity_counts_tasks_that_wait(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    for _ in range(3):
        await submit(fleet, ada.headers)
    seen = (await fleet.client.get("/v1/capacity", headers=ada.headers)).json()
    assert (seen["pending_tasks"], seen["pending_environments"]) == (2, 0)


async def test_usage_counts_what_tasks_held(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    await submit(fleet, ada.headers)
    attempt = await run(agent)
    await sql(app, "UPDATE allocations SET allocated_at = now() - interval '2 hours'")
    await agent.complete(attempt)
    await agent.attempt(attempt, "release")
    answer = await fleet.client.get("/v1/usage", headers=fleet.admin, params={"group_by": "user"})
    (record,) = answer.json()["records"]
    assert (record["user"], record["starts"]) == ("ada", 1)
    assert record["gpu_hours"] == pytest.approx(2, abs=0.1)


async def test_notebook_submits_into_its_workspace_and_sees_the_events_of_its_tasks(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    await fleet.host("h1", gpus=4)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    made = await fleet.client.post("/v1/workspaces", headers=ada.headers, json={"name": "Team"})
    environment = (await fleet.create(ada.headers, workspace=made.json()["id"])).json()["id"]
    async with app.state.database.sessions() as db:
        minted = await tokens.mint(
            db,
            kind=TokenKind.WORKLOAD,
            scopes=(Scope.NOTEBOOK,),
            environment_id=environment,
            user_id=ada.id,
        )
        await db.commit()
    notebook = {"Authorization": f"Bearer {minted.secret}"}
    task = await submit(fleet, notebook)
    assert (await show(fleet, task))["workspace_id"] == made.json()["id"]
    theirs = await submit(fleet, bob.headers)
    elsewhere = await submit(fleet, ada.headers)
    listed = await fleet.client.get("/v1/tasks", headers=notebook)
    assert {one["id"] for one in listed.json()["items"]} == {task, elsewhere}
    hidden = await fleet.client.get(f"/v1/tasks/{theirs}", headers=notebook)
    assert hidden.status_code == 404
    stopped = await fleet.client.post(f"/v1/tasks/{elsewhere}:stop", headers=notebook)
    assert stopped.json()["status"] == "cancelled"
    seen: set[tuple[str, str]] = set()
    page = await fleet.client.get("/v1/events", headers=notebook, params={"after": "0"})
    for event in page.json()["items"]:
        seen.add((event["subject_type"], event["subject_id"]))
    assert {one for kind, one in seen if kind == "task"} == {task, elsewhere}
    assert {one for kind, one in seen if kind != "task"} <= {environment}


async def test_submit_with_the_same_key_is_one_task(fleet: Fleet, actors: Actors) -> None:
    ada = await actors.user("ada")
    headers = ada.headers | {"Idempotency-Key": "once"}
    await fleet.host("h1", gpus=1)
    assert await submit(fleet, headers) == await submit(fleet, headers)
