"""Tasks through the API and the agent protocol, with hollow agents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import GIB, Fleet, HollowAgent
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server import loops, placement
from remotegpu_server.attempts import loop as attempts
from remotegpu_server.environments import history
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.queue import turns
from remotegpu_server.tasks import queries
from remotegpu_server.tasks.service import stop
from remotegpu_server.testing import Actors


async def submit(fleet: Fleet, headers: dict[str, str], **spec: Any) -> dict[str, Any]:
    body = {"image": "base", "command": ["train"]} | spec
    answer = await fleet.client.post("/v1/tasks", headers=headers, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()["tasks"][0]
    return made


async def show(fleet: Fleet, headers: dict[str, str], task_id: str) -> dict[str, Any]:
    answer = await fleet.client.get(f"/v1/tasks/{task_id}", headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def run_to_the_end(agent: HollowAgent, task: dict[str, Any], **result: Any) -> None:
    (attempt,) = await agent.claim()
    assert attempt["task_id"] == task["id"]
    for verb in ("accept", "start"):
        assert (await agent.attempt(attempt["id"], verb)).status_code < 300
    await agent.complete(attempt["id"], **result)
    assert (await agent.attempt(attempt["id"], "release")).status_code == 204


async def test_task_is_placed_claimed_run_and_released(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1, env={"LR": "0.1"}, timeout_s=60)
    assert (task["status"], task["attempt"], task["hosts"][0]["host_name"]) == ("assigned", 1, "h1")
    (attempt,) = await agent.claim()
    assert (attempt["command"], attempt["env"]["LR"]) == (["train"], "0.1")
    assert attempt["gpu_uuids"] == ["GPU-h1-0"]
    assert attempt["secret_env"]["REMOTEGPU_TASK_ID"] == task["id"]
    early = await agent.attempt(attempt["id"], "start")
    assert (early.status_code, early.json()["error"]) == (409, "attempt_final")
    lease = (await agent.attempt(attempt["id"], "accept")).json()
    assert (lease["lease_s"], lease["stop"]) == (90.0, False)
    assert (await agent.attempt(attempt["id"], "start")).status_code == 204
    assert (await agent.attempt(attempt["id"], "start")).status_code == 204, "the same again succeeds"
    running = await show(fleet, ada.headers, task["id"])
    assert (running["status"], running["simulated"]) == ("running", True)
    assert running["deadline_at"] is not None
    said = {"progress": 0.4, "message": "epoch 4"}
    assert (await agent.attempt(attempt["id"], "progress", **said)).status_code == 204
    assert (await show(fleet, ada.headers, task["id"]))["progress"] == 0.4
    for _ in range(3):  # delivered three times
        assert (await agent.complete(attempt["id"])).status_code == 204
    other = await agent.complete(attempt["id"], status="failed", exit_code=1)
    assert (other.status_code, other.json()["error"]) == (409, "attempt_final")
    done = await show(fleet, ada.headers, task["id"])
    assert (done["status"], done["exit_code"], done["reason"]) == ("succeeded", 0, "succeeded")
    assert (await agent.attempt(attempt["id"], "release")).status_code == 204
    assert (await agent.attempt(attempt["id"], "release")).status_code == 204
    tried = await fleet.client.get(f"/v1/tasks/{task['id']}/attempts", headers=ada.headers)
    (tried_once,) = tried.json()["items"]
    assert tried_once["status"] == "succeeded"
    assert tried_once["released_at"] is not None
    async with app.state.database.sessions() as db:
        live = await db.scalar(sa.text("SELECT count(*) FROM allocations WHERE released_at IS NULL"))
        token = await db.scalar(
            sa.text("SELECT count(*) FROM tokens WHERE attempt_id IS NOT NULL AND revoked_at IS NULL")
        )
    assert (live, token) == (0, 0)


async def test_claim_waits_is_answered_at_once_and_repeats_what_it_gave(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    waiting = asyncio.create_task(agent.claim(request_id="req-00000001", wait_s=20))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    task = await submit(fleet, ada.headers)
    (attempt,) = await asyncio.wait_for(waiting, 5)
    assert attempt["task_id"] == task["id"]
    assert [one["id"] for one in await agent.claim(request_id="req-00000001")] == [attempt["id"]]
    assert await agent.claim(request_id="req-00000002") == []


async def test_many_tasks_and_parallel_claims_go_to_one_claimer_each(
    fleet: Fleet, actors: Actors, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=1, cpus=1000), await actors.user("ada")
    body = {"image": "base", "command": ["x"], "memory_bytes": 64 * 2**20, "array": {"size": 40}}
    answer = await fleet.client.post("/v1/tasks", headers=ada.headers, json=body | {"cpus": 0.1})
    assert (answer.json()["count"], len(answer.json()["tasks"])) == (40, 40)
    await turns.place_pending(work)
    sets = await asyncio.gather(*(agent.claim(most=3) for _ in range(20)))
    claimed = [attempt["id"] for one in sets for attempt in one]
    assert len(claimed) == len(set(claimed)) == 40


async def test_waits_for_a_gpu_and_starts_in_its_turn(fleet: Fleet, actors: Actors, work: Work) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    environment = (await fleet.create(ada.headers, gpus=1)).json()
    task = await submit(fleet, ada.headers, gpus=1)
    assert (task["status"], task["reason"], task["queue_position"]) == ("pending", "no_free_gpu", 1)
    await fleet.act(ada.headers, environment["id"], "stop")
    await agent.obey()
    await turns.place_pending(work)
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "assigned"


async def test_stop_before_the_claim_ends_at_once_and_frees_the_gpu(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1)
    stopped = await fleet.client.post(f"/v1/tasks/{task['id']}:stop", headers=ada.headers)
    assert stopped.json()["status"] == "cancelled"
    assert await agent.claim() == []
    assert (await submit(fleet, ada.headers, gpus=1))["status"] == "assigned"


async def test_stop_of_a_claimed_attempt_refuses_its_start_and_is_final(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1)
    (attempt,) = await agent.claim()
    await fleet.client.post(f"/v1/tasks/{task['id']}:stop", headers=ada.headers)
    for verb in ("accept", "start", "renew"):
        assert (await agent.attempt(attempt["id"], verb)).status_code == 409
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "cancelled"
    assert (await submit(fleet, ada.headers, gpus=1))["status"] == "pending", "not proven gone"
    assert (await agent.attempt(attempt["id"], "release")).status_code == 204


async def test_stop_of_a_running_attempt_is_told_and_ends_it(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers)
    (attempt,) = await agent.claim()
    await agent.attempt(attempt["id"], "accept")
    await agent.attempt(attempt["id"], "start")
    stopping = await fleet.client.post(f"/v1/tasks/{task['id']}:stop", headers=ada.headers)
    assert (stopping.json()["status"], stopping.json()["stop_requested"]) == ("running", True)
    levels = (await agent.poll()).json()["attempts"]
    assert levels == [{"id": attempt["id"], "stop": True, "stop_reason": "cancelled"}]
    assert (await agent.attempt(attempt["id"], "renew")).json()["stop"]
    await agent.complete(attempt["id"], status="cancelled", exit_code=143, reason="cancelled")
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "cancelled"
    await agent.attempt(attempt["id"], "release")
    again = await fleet.client.post(f"/v1/tasks/{task['id']}:retry", headers=ada.headers)
    assert (again.json()["status"], again.json()["attempt"]) == ("pending", 1)


@pytest.mark.parametrize(("retry_on", "becomes"), [(["failed"], "pending"), (["lost"], "failed")])
async def test_failure_is_retried_only_when_asked_for(
    fleet: Fleet, actors: Actors, work: Work, retry_on: list[str], becomes: str
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, retry_on=retry_on, retry_delay_s=0)
    await run_to_the_end(agent, task, status="failed", exit_code=3, reason="exit_code")
    ended = await show(fleet, ada.headers, task["id"])
    assert (ended["status"], ended["exit_code"]) == (becomes, 3)
    if becomes == "pending":
        await turns.place_pending(work)
        await run_to_the_end(agent, task)
        done = await show(fleet, ada.headers, task["id"])
        assert (done["status"], done["attempt"]) == ("succeeded", 2)


async def test_lost_attempt_is_given_up_after_the_fence_and_its_late_words_change_nothing(
    fleet: Fleet, actors: Actors, work: Work, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1, retry_delay_s=0)
    (first,) = await agent.claim()
    await agent.attempt(first["id"], "accept")
    await agent.attempt(first["id"], "start")
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("UPDATE attempts SET lost_at = now() - interval '1 second'"))
        await db.commit()
    await attempts.give_up_lost(work)
    waiting = await show(fleet, ada.headers, task["id"])
    assert (waiting["status"], waiting["reason"]) == ("pending", "retry_delay")
    await turns.place_pending(work)
    (second,) = await agent.claim()
    assert (second["task_id"], second["number"]) == (task["id"], 2)
    late = await agent.complete(first["id"])
    assert (late.status_code, late.json()["error"]) == (410, "lease_expired")
    assert (await agent.attempt(first["id"], "renew")).status_code == 410
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "assigned"
    async with app.state.database.sessions() as db:
        await assert_invariants(db)


async def test_jump_of_the_databases_clock_gives_up_nobody_that_is_heard_again(
    fleet: Fleet, actors: Actors, work: Work, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1)
    (only,) = await agent.claim()
    await agent.attempt(only["id"], "accept")
    await agent.attempt(only["id"], "start")
    await attempts.give_up_lost(work)
    # An hour ahead, as the rows and the loop see it: neither a database nor a machine is set for one test.
    ahead = sa.text("SELECT extract(epoch FROM clock_timestamp() + interval '1 hour')")
    monkeypatch.setattr(loops, "_DATABASE_NOW", ahead)
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("UPDATE attempts SET lost_at = lost_at - interval '1 hour'"))
        await db.commit()
    for _ in range(2):
        await attempts.give_up_lost(work)
        assert (await show(fleet, ada.headers, task["id"]))["status"] == "running"
    assert (await agent.attempt(only["id"], "renew")).status_code == 200
    assert work.clock.steady_since is not None
    work.clock.steady_since -= work.settings.attempt_lost_s + 1
    await attempts.give_up_lost(work)
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "running", "it was heard"
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("UPDATE attempts SET lost_at = now() - interval '1 second'"))
        await db.commit()
    await attempts.give_up_lost(work)
    lost = await show(fleet, ada.headers, task["id"])
    assert lost["status"] == "pending", "one that stays silent is lost"


async def test_reboot_ends_attempts_of_the_old_boot_and_frees_their_gpus(
    fleet: Fleet, actors: Actors, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1, retry_delay_s=0)
    (first,) = await agent.claim()
    await agent.attempt(first["id"], "accept")
    agent.boot_id = "boot-2"
    await agent.register()
    await turns.place_pending(work)
    await run_to_the_end(agent, task)
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "succeeded"


async def test_attempt_of_another_host_is_a_mismatch(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    await submit(fleet, ada.headers)
    (attempt,) = await agent.claim()
    other = await fleet.host("h2", gpus=1)
    for verb in ("accept", "start", "renew", "release"):
        refused = await other.attempt(attempt["id"], verb)
        assert (refused.status_code, refused.json()["error"]) == (409, "attempt_mismatch")


async def test_dependencies_hold_back_release_and_cancel(fleet: Fleet, actors: Actors, work: Work) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    first = await submit(fleet, ada.headers, name="first")
    good = await submit(fleet, ada.headers, depends_on=[{"task_id": first["id"]}])
    both = {"task_id": first["id"], "condition": "after_any"}
    anyway = await submit(fleet, ada.headers, depends_on=[both])
    assert (good["status"], good["reason"], good["queue_position"]) == ("pending", "dependencies", None)
    await turns.place_pending(work)
    assert (await show(fleet, ada.headers, good["id"]))["status"] == "pending"
    await run_to_the_end(agent, first, status="failed", exit_code=1, reason="exit_code")
    await attempts.cancel_hopeless(work)
    await turns.place_pending(work)
    assert (await show(fleet, ada.headers, good["id"]))["reason"] == "dependency_failed"
    assert (await show(fleet, ada.headers, anyway["id"]))["status"] == "assigned"


async def test_array_keeps_its_limit_and_tells_each_its_number(
    fleet: Fleet, actors: Actors, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    body = {"image": "base", "command": ["x"], "array": {"size": 5, "max_parallel": 2}}
    made = (await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)).json()
    numbers = []
    for expected in (2, 2, 1):
        await turns.place_pending(work)
        claimed = await agent.claim()
        assert len(claimed) == expected
        for attempt in claimed:
            numbers.append(int(attempt["env"]["REMOTEGPU_ARRAY_INDEX"]))
            await agent.attempt(attempt["id"], "accept")
            await agent.attempt(attempt["id"], "start")
            await agent.complete(attempt["id"])
            await agent.attempt(attempt["id"], "release")
    assert sorted(numbers) == [0, 1, 2, 3, 4]
    listed = await fleet.client.get("/v1/tasks", headers=ada.headers, params={"array": made["array_id"]})
    assert {one["status"] for one in listed.json()["items"]} == {"succeeded"}


async def test_array_of_a_million_is_refused(fleet: Fleet, actors: Actors) -> None:
    ada = await actors.user("ada")
    body = {"image": "base", "command": ["x"], "array": {"size": 1_000_000}}
    answer = await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)
    assert answer.status_code == 422
    assert "1000 tasks at most" in answer.json()["detail"]


async def test_quota_of_tasks_counts_those_that_hold_something(
    fleet: Fleet, actors: Actors, work: Work
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    await fleet.limit("user", ada.id, tasks=1)
    first = await submit(fleet, ada.headers)
    second = await submit(fleet, ada.headers)
    assert (second["status"], second["reason"]) == ("pending", "quota")
    await run_to_the_end(agent, first)
    await turns.place_pending(work)
    assert (await show(fleet, ada.headers, second["id"]))["status"] == "assigned"


async def test_what_can_never_run_is_refused(fleet: Fleet, actors: Actors) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    for spec, code in (
        ({"gpus": 2}, "unsatisfiable"),
        ({"memory_bytes": 4096 * GIB}, "unsatisfiable"),
        ({"script": "echo"}, "invalid"),
        ({"command": None}, "invalid"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "invalid"),
    ):
        body = {"image": "base", "command": ["x"]} | spec
        answer = await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)
        assert (answer.status_code, answer.json()["error"]) == (422, code), answer.text


async def test_script_is_in_the_answer_about_one_task_only(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, command=None, script="echo")
    listed = (await fleet.client.get("/v1/tasks", headers=ada.headers)).json()["items"]
    assert [one["script"] for one in (task, *listed)] == [None, None]
    assert (await show(fleet, ada.headers, task["id"]))["script"] == "echo"
    (attempt,) = await agent.claim()
    assert attempt["script"] == "echo"
    stopped = await fleet.client.post(f"/v1/tasks/{task['id']}:stop", headers=ada.headers)
    assert stopped.json()["script"] == "echo"
    async with app.state.database.sessions() as db:
        (bundle,) = await queries.bundles(db, ids=[task["id"]], with_scripts=False)
    assert "script" not in vars(bundle.task), "what is not shown is not read either"


async def test_what_a_silent_host_never_claimed_waits_again(
    fleet: Fleet, actors: Actors, work: Work, app: FastAPI
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1)
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("UPDATE hosts SET connection = 'unreachable'"))
        await db.commit()
    await attempts.take_back_unclaimed(work)
    waiting = await show(fleet, ada.headers, task["id"])
    assert (waiting["status"], waiting["reason"]) == ("pending", "host_silent")


async def test_long_array_is_stopped_in_a_bounded_number_of_statements(
    fleet: Fleet, actors: Actors, work: Work, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=2), await actors.user("ada")
    body = {"image": "base", "command": ["x"], "gpus": 1, "array": {"size": 100}}
    made = (await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)).json()
    await turns.place_pending(work)
    claimed = await agent.claim(most=1)
    for verb in ("accept", "start"):
        await agent.attempt(claimed[0]["id"], verb)
    path = f"/v1/task-arrays/{made['array_id']}"
    seen = (await fleet.client.get(path, headers=ada.headers)).json()
    assert (seen["size"], seen["counts"]) == (100, {"assigned": 1, "pending": 98, "running": 1})
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    engine = app.state.database.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", note)
    stopped = (await fleet.client.post(f"{path}:stop", headers=ada.headers)).json()
    sa.event.remove(engine, "before_cursor_execute", note)
    assert stopped["counts"] == {"cancelled": 99, "running": 1}
    assert len(statements) < 60, "so many whatever waits"
    (level,) = (await agent.poll()).json()["attempts"]
    assert level["stop"]
    async with app.state.database.sessions() as db:
        told = await db.scalar(
            sa.text("SELECT count(*) FROM events WHERE kind = 'task.status' AND data->>'to' = 'cancelled'")
        )
    assert told == 99, "whoever watches one of them hears of it"
    again = (await fleet.client.post(f"{path}:stop", headers=ada.headers)).json()
    assert again["counts"] == stopped["counts"]
    eve = await actors.user("eve")
    for method, url in (("GET", path), ("POST", f"{path}:stop")):
        assert (await fleet.client.request(method, url, headers=eve.headers)).status_code == 404


async def test_one_persons_waiting_tasks_are_bounded(fleet: Fleet, actors: Actors) -> None:
    ada = await actors.user("ada")
    changed = await fleet.client.patch(
        "/v1/settings/tasks.waiting_max", headers=fleet.admin, json={"value": 3}
    )
    assert changed.status_code == 200, changed.text
    later = {"image": "base", "command": ["x"], "start_at": "2099-01-01T00:00:00Z"}
    body = later | {"array": {"size": 3}}
    assert (await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)).status_code == 201
    refused = await fleet.client.post("/v1/tasks", headers=ada.headers, json=later)
    assert (refused.status_code, refused.json()["data"]) == (409, {"waiting": 3, "limit": 3})


async def test_what_a_host_does_not_claim_in_time_waits_again(
    fleet: Fleet, actors: Actors, work: Work, app: FastAPI
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1, max_retries=0)
    await attempts.take_back_unclaimed(work)
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "assigned", "it has some time"
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("UPDATE attempts SET created_at = now() - interval '3 minutes'"))
        await db.commit()
    await attempts.take_back_unclaimed(work)
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "pending"


async def test_result_of_an_attempt_that_was_not_claimed_is_refused(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    await submit(fleet, ada.headers)
    async with app.state.database.sessions() as db:
        attempt_id = await db.scalar(sa.text("SELECT id FROM attempts"))
    assert (await agent.complete(attempt_id)).json()["error"] == "attempt_final"


async def test_drained_attempt_that_is_lost_costs_no_retry(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1, max_retries=0)
    (attempt,) = await agent.claim()
    await agent.attempt(attempt["id"], "accept")
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("UPDATE attempts SET stop_reason = 'host_drained'"))
        await db.commit()
    agent.boot_id = "boot-2"
    await agent.register()
    assert (await show(fleet, ada.headers, task["id"]))["status"] == "pending"


async def test_withdrawn_image_runs_again_for_nobody(fleet: Fleet, actors: Actors) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers)
    await run_to_the_end(agent, task, status="failed", exit_code=1, reason="exit_code")
    await fleet.client.patch("/v1/images/base", headers=fleet.admin, json={"status": "withdrawn"})
    again = await fleet.client.post(f"/v1/tasks/{task['id']}:retry", headers=ada.headers)
    assert again.json()["error"] == "image_not_allowed"


async def test_revoked_agent_claims_nothing_more_in_a_held_request(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    held = asyncio.create_task(
        fleet.client.post(
            "/v1/agent/tasks/claim",
            headers=agent.headers,
            json={"epoch": agent.epoch, "request_id": "held-0001", "max_attempts": 1, "wait_s": 20},
        )
    )
    await asyncio.sleep(0.3)
    async with app.state.database.sessions() as db:
        await db.execute(sa.text("UPDATE tokens SET revoked_at = now() WHERE kind = 'agent'"))
        await db.commit()
    await submit(fleet, ada.headers)
    assert (await asyncio.wait_for(held, 10)).status_code == 401


_LONG_AGO = (
    "ALTER TABLE placements DISABLE TRIGGER release_once",
    "ALTER TABLE allocations DISABLE TRIGGER release_once",
    "UPDATE placements SET placed_at = now() - interval '400 days',"
    " released_at = now() - interval '399 days'",
    "UPDATE allocations SET allocated_at = now() - interval '400 days',"
    " released_at = now() - interval '399 days'",
    "ALTER TABLE placements ENABLE TRIGGER release_once",
    "ALTER TABLE allocations ENABLE TRIGGER release_once",
)


async def test_released_attempts_move_to_the_history_and_keep_their_gpu_seconds(
    fleet: Fleet, actors: Actors, work: Work, app: FastAPI
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers, gpus=1)
    await run_to_the_end(agent, task)
    async with app.state.database.sessions() as db:
        for statement in _LONG_AGO:
            await db.execute(sa.text(statement))
        await db.commit()
    await history.move_finished(work)
    async with app.state.database.sessions() as db:
        assert await db.scalar(sa.text("SELECT count(*) FROM placements")) == 0
    (tried,) = (await fleet.client.get(f"/v1/tasks/{task['id']}/attempts", headers=ada.headers)).json()[
        "items"
    ]
    assert tried["gpu_seconds"] == pytest.approx(86400)
    assert tried["released_at"] is not None


async def test_stop_of_a_task_that_is_placed_in_between_locks_its_host_first(
    fleet: Fleet, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, ada = await fleet.host("h1", gpus=1), await actors.user("ada")
    task = await submit(fleet, ada.headers)
    looks, really = [], stop._hosts_of

    async def late(db: AsyncSession, *, task_id: str) -> list[str]:
        looks.append(task_id)
        return [] if len(looks) == 1 else await really(db, task_id=task_id)

    monkeypatch.setattr(stop, "_hosts_of", late)
    answer = await fleet.client.post(f"/v1/tasks/{task['id']}:stop", headers=ada.headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert len(looks) == 4, "locks were given back, and taken anew in their order"
    assert await agent.claim() == []


async def test_alike_tasks_that_wait_are_decided_once(
    fleet: Fleet, actors: Actors, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await submit(fleet, ada.headers, gpus=1)
    body = {"image": "base", "command": ["x"], "gpus": 1, "array": {"size": 50}}
    await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)
    chosen, really = [], placement.choose_all

    def counted(*given: Any, **more: Any) -> Any:
        chosen.append(given)
        return really(*given, **more)

    monkeypatch.setattr(placement, "choose_all", counted)
    await turns.place_pending(work)
    assert len(chosen) == 1
    listed = await fleet.client.get("/v1/tasks", headers=ada.headers, params={"status": "pending"})
    assert {one["reason"] for one in listed.json()["items"]} == {"no_free_gpu"}
