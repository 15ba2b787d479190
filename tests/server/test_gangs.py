"""Tasks on several hosts at once, with hollow agents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet, HollowAgent
from sqlalchemy.exc import IntegrityError

from remotegpu_server.attempts import loop as attempts
from remotegpu_server.attempts import tries
from remotegpu_server.hosts import loop as hosts
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.loops import Work
from remotegpu_server.queue import turns, waits
from remotegpu_server.testing import Actors


class Gang:
    """A task on several hosts and their agents, by rank."""

    def __init__(self, fleet: Fleet, headers: dict[str, str], made: dict[str, Any]) -> None:
        self._fleet, self._headers, self.made = fleet, headers, made
        self.id = made["id"]
        self.agents: list[HollowAgent] = []
        self.specs: list[dict[str, Any]] = []

    async def claim(self, agents: list[HollowAgent]) -> None:
        """All of its attempts, by whichever of the agents has them."""
        found = []
        for agent in agents:
            found += [(one["rank"], agent, one) for one in await agent.claim() if one["task_id"] == self.id]
        found.sort(key=lambda one: one[0])
        assert [rank for rank, _, _ in found] == list(range(self.made["nodes"]))
        self.agents, self.specs = [one[1] for one in found], [one[2] for one in found]

    async def say(self, rank: int, verb: str, **body: Any) -> Any:
        answer = await self.agents[rank].attempt(self.specs[rank]["id"], verb, **body)
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.status_code == 200 else None

    async def start(self) -> None:
        for rank in range(len(self.specs)):
            await self.say(rank, "accept")
            await self.say(rank, "renew", ready=True)
        for rank in range(len(self.specs)):
            assert (await self.say(rank, "renew"))["go"]
            await self.say(rank, "start")

    async def complete(self, rank: int, **result: Any) -> None:
        answer = await self.agents[rank].complete(self.specs[rank]["id"], **result)
        assert answer.status_code == 204, answer.text

    async def fail(self, rank: int) -> None:
        said = "It ended with exit code 3."
        await self.complete(rank, status="failed", exit_code=3, reason="exit_code", message=said)

    async def obey(self, rank: int) -> None:
        """End as it was told to, and leave nothing."""
        lease = await self.say(rank, "renew")
        assert lease["stop"]
        await self.complete(rank, status="cancelled", exit_code=143, reason=lease["stop_reason"])
        await self.say(rank, "release")

    async def task(self) -> dict[str, Any]:
        answer = await self._fleet.client.get(f"/v1/tasks/{self.id}", headers=self._headers)
        found: dict[str, Any] = answer.json()
        return found

    async def attempts(self) -> list[dict[str, Any]]:
        """Of the newest try first; in a try the highest rank first."""
        answer = await self._fleet.client.get(f"/v1/tasks/{self.id}/attempts", headers=self._headers)
        found: list[dict[str, Any]] = answer.json()["items"]
        return found


async def submit(fleet: Fleet, headers: dict[str, str], nodes: int, **spec: Any) -> Gang:
    body = {"image": "base", "command": ["train"], "nodes": nodes, "gpus": 1, "retry_delay_s": 0} | spec
    answer = await fleet.client.post("/v1/tasks", headers=headers, json=body)
    assert answer.status_code == 201, answer.text
    return Gang(fleet, headers, answer.json()["tasks"][0])


@pytest.fixture
async def agents(fleet: Fleet) -> list[HollowAgent]:
    return [await fleet.host(f"h{number}", gpus=2) for number in range(3)]


async def check(app: FastAPI) -> None:
    async with app.state.database.sessions() as db:
        await assert_invariants(db)


async def held(app: FastAPI) -> int:
    async with app.state.database.sessions() as db:
        found = await db.scalar(sa.text("SELECT count(*) FROM allocations WHERE released_at IS NULL"))
    return int(found or 0)


async def test_gang_is_placed_whole_waits_for_all_and_runs(
    fleet: Fleet, actors: Actors, app: FastAPI, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    gang = await submit(fleet, ada.headers, 3, timeout_s=60)
    assert (gang.made["status"], [one["rank"] for one in gang.made["hosts"]]) == ("assigned", [0, 1, 2])
    assert len({one["host_name"] for one in gang.made["hosts"]}) == 3
    assert gang.made["message"].endswith(" with 1 x A100-80GB each.")
    await gang.claim(agents)
    (told,) = {tuple(sorted(one["gang"].items())) for one in gang.specs}
    assert dict(told) == {"nodes": 3, "address": "192.0.2.1", "port": dict(told)["port"]}
    assert dict(told)["port"] in tries.GANG_PORTS
    for rank in range(3):
        assert not (await gang.say(rank, "accept"))["go"]
    early = await gang.agents[0].attempt(gang.specs[0]["id"], "start")
    assert (early.status_code, early.json()["error"]) == (409, "attempt_final")
    assert (await gang.say(0, "renew", ready=True))["renew_in_s"] == 1.0
    assert not (await gang.say(1, "renew", ready=True))["go"]
    assert (await gang.say(2, "renew", ready=True))["go"], "the last one need not ask again"
    await gang.say(2, "start")
    assert (await gang.task())["status"] == "assigned", "the timeout counts from the start of all"
    for rank in (0, 1):
        assert (await gang.say(rank, "renew"))["go"]
        await gang.say(rank, "start")
    running = await gang.task()
    assert (running["status"], running["message"]) == ("running", "Runs on 3 hosts.")
    await check(app)
    for rank in (1, 0):
        await gang.complete(rank)
        await gang.say(rank, "release")
        assert (await gang.task())["status"] == "running"
    await gang.complete(2)
    done = await gang.task()
    assert (done["status"], done["exit_code"], done["reason"]) == ("succeeded", 0, "succeeded")
    await gang.say(2, "release")
    assert await held(app) == 0
    await check(app)


async def test_one_failure_ends_all_once_and_a_retry_waits_for_the_last(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    gang = await submit(fleet, ada.headers, 3, max_retries=1, retry_on=["failed"])
    await gang.claim(agents)
    await gang.start()
    await gang.complete(0)  # done with its part
    await gang.fail(1)
    await attempts.end_gangs(work)
    ending = await gang.task()
    assert (ending["status"], ending["reason"]) == ("running", "gang_failed")
    where = gang.agents[1].host_name
    assert ending["message"] == f"Rank 1 on {where} ended: It ended with exit code 3. Ending the others."
    await attempts.end_gangs(work)
    await check(app)
    await gang.obey(2)
    again = await gang.task()
    assert (again["status"], again["exit_code"]) == ("pending", 3)
    assert again["message"].startswith(f"Rank 1 on {where}: It ended with exit code 3. Another attempt")
    assert [(one["rank"], one["status"], one["reason"]) for one in await gang.attempts()] == [
        (2, "cancelled", "gang_failed"), (1, "failed", "exit_code"), (0, "succeeded", "succeeded"),
    ]  # fmt: skip
    assert (await gang.attempts())[0]["message"] == f"Rank 1 on {where} ended: It ended with exit code 3."
    assert await held(app) == 2, "given back on proof only"
    await turns.place_pending(work)  # hosts with a free GPU are enough: the rest may still be held
    assert ((await gang.task())["status"], (await gang.task())["attempt"]) == ("assigned", 2)
    for rank in (0, 1):
        await gang.say(rank, "release")
    await gang.claim(agents)
    await gang.start()
    for rank in range(3):
        await gang.complete(rank)
        await gang.say(rank, "release")
    assert (await gang.task())["status"] == "succeeded"
    assert await held(app) == 0
    await check(app)


async def test_failure_before_the_start_ends_what_waits_and_what_was_never_claimed(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    gang = await submit(fleet, ada.headers, 3, max_retries=0)
    by_host = {agent.host_name: agent for agent in agents}
    first, second, third = (by_host[one["host_name"]] for one in gang.made["hosts"])
    ((waiting,), (broken,)) = await first.claim(), await second.claim()
    for agent, one in ((first, waiting), (second, broken)):
        assert (await agent.attempt(one["id"], "accept")).status_code == 200
    await first.attempt(waiting["id"], "renew", ready=True)
    await second.complete(broken["id"], status="failed", exit_code=None, reason="image_not_found")
    await attempts.end_gangs(work)
    assert await third.claim() == []
    lease = (await first.attempt(waiting["id"], "renew", ready=True)).json()
    assert (lease["go"], lease["stop"], lease["stop_reason"]) == (False, True, "gang_failed")
    await first.complete(waiting["id"], status="cancelled", exit_code=None, reason="gang_failed")
    done = await gang.task()
    assert (done["status"], done["reason"], done["exit_code"]) == ("failed", "image_not_found", None)
    await check(app)


@pytest.mark.parametrize("moment", ["unclaimed", "barrier", "running"])
async def test_lost_host_ends_all_and_the_task_goes_on_elsewhere_within_its_retries(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, agents: list[HollowAgent], moment: str
) -> None:
    ada = await actors.user("ada")
    gang = await submit(fleet, ada.headers, 3, max_retries=1)
    if moment == "unclaimed":
        silent = agents[2].host_name
        for agent in agents[:2]:
            for one in await agent.claim():
                await agent.attempt(one["id"], "accept")
        async with app.state.database.sessions() as db:
            await db.execute(sa.text("UPDATE attempts SET created_at = now() - interval '1 hour'"))
            await db.commit()
        await attempts.take_back_unclaimed(work)
    else:
        await gang.claim(agents)
        if moment == "running":
            await gang.start()
            await gang.fail(0)  # its peers were gone, which it sees long before the server does
        else:
            for rank in range(3):
                await gang.say(rank, "accept")
        silent = gang.agents[2].host_name
        async with app.state.database.sessions() as db:
            late = sa.text("UPDATE attempts SET lost_at = now() - interval '1 second' WHERE rank = 2")
            await db.execute(late)
            await db.commit()
        await attempts.give_up_lost(work)
    await attempts.end_gangs(work)
    for agent in agents[:3]:
        for one in (await agent.poll()).json()["attempts"]:
            assert one["stop_reason"] == "gang_failed"
            await agent.complete(one["id"], status="cancelled", exit_code=143, reason="gang_failed")
    again = await gang.task()
    assert again["status"] == "pending"
    assert silent in again["message"]
    async with app.state.database.sessions() as db:
        (retries,) = await db.execute(sa.text("SELECT retries FROM tasks"))
    assert retries[0] == (0 if moment == "unclaimed" else 1), "what never ran costs no retry"
    await check(app)


async def test_stop_and_drain_end_all(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    gang = await submit(fleet, ada.headers, 2)
    await gang.claim(agents)
    for rank in range(2):
        await gang.say(rank, "accept")
    await gang.say(0, "renew", ready=True)  # stopped while it waits
    await fleet.client.post(f"/v1/tasks/{gang.id}:stop", headers=ada.headers)
    for rank in range(2):
        await gang.obey(rank)
    assert ((await gang.task())["status"], (await gang.task())["reason"]) == ("cancelled", "cancelled")
    moved = await submit(fleet, ada.headers, 2)
    await moved.claim(agents)
    await moved.start()
    drained = moved.agents[1].host_name
    answer = await fleet.client.post(
        f"/v1/hosts/{drained}:drain", headers=fleet.admin, json={"deadline_s": 0}
    )
    assert answer.status_code == 200, answer.text
    await hosts.follow_drains(work)
    for rank in range(2):
        await moved.obey(rank)
    again = await moved.task()
    assert (again["status"], again["reason"], again["attempt"]) == ("pending", "host_drained", 1)
    await turns.place_pending(work)
    assert drained not in {one["host_name"] for one in (await moved.task())["hosts"]}
    await check(app)


async def test_rank_that_is_not_ready_for_long_sends_all_back_into_the_queue(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    gang = await submit(fleet, ada.headers, 3, max_retries=0)
    await gang.claim(agents)
    for rank in range(3):
        await gang.say(rank, "accept")
    for rank in (0, 2):
        await gang.say(rank, "renew", ready=True)

    async def ready_for(minutes: int) -> None:
        async with app.state.database.sessions() as db:
            ago = sa.text("UPDATE attempts SET ready_at = now() - make_interval(mins => :m) WHERE rank = 0")
            await db.execute(ago, {"m": minutes})
            await db.commit()
        await attempts.end_held_up(work)

    await ready_for(29)
    assert not (await gang.say(1, "renew"))["stop"]
    await ready_for(31)
    told = await gang.task()
    assert told["message"].startswith(
        f"Not ready within 30 minutes of the others: rank 1 on {gang.agents[1].host_name}."
    )
    await attempts.end_held_up(work)
    await gang.obey(1)
    await attempts.end_gangs(work)
    for rank in (0, 2):
        await gang.obey(rank)
    again = await gang.task()
    assert (again["status"], again["attempt"], again["reason"]) == ("pending", 1, "host_silent")
    async with app.state.database.sessions() as db:
        assert await db.scalar(sa.text("SELECT retries FROM tasks")) == 0
        events = sa.text("SELECT count(*) FROM events WHERE message LIKE 'Not ready within%'")
        assert await db.scalar(events) == 1, "told once"
    await check(app)


async def test_late_start_keeps_why_a_rank_is_ended(
    fleet: Fleet, actors: Actors, work: Work, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    gang = await submit(fleet, ada.headers, 2, max_retries=0)
    await gang.claim(agents)
    for rank in range(2):
        await gang.say(rank, "accept")
        await gang.say(rank, "renew", ready=True)
    await gang.say(0, "start")
    await gang.fail(0)
    await attempts.end_gangs(work)
    await gang.say(1, "start", detail="Job 7 of Slurm on n1.")  # it began before it heard of its end
    await gang.obey(1)
    words = f"Rank 0 on {gang.agents[0].host_name} ended: It ended with exit code 3."
    assert [one["message"] for one in await gang.attempts() if one["rank"] == 1] == [words]


async def test_ports_are_unique_on_an_address_until_the_release(
    fleet: Fleet,
    actors: Actors,
    app: FastAPI,
    work: Work,
    agents: list[HollowAgent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ada = await actors.user("ada")
    monkeypatch.setattr(tries, "GANG_PORTS", range(29500, 29502))
    gangs = [await submit(fleet, ada.headers, 2, gpus=0) for _ in range(3)]
    assert [one.made["status"] for one in gangs] == ["assigned", "assigned", "pending"]
    async with app.state.database.sessions() as db:
        ports = set(await db.scalars(sa.text("SELECT rendezvous_port FROM attempts WHERE rank = 0")))
        assert ports == {29500, 29501}
        with pytest.raises(IntegrityError):
            await db.execute(sa.text("UPDATE attempts SET rendezvous_port = 29500 WHERE rank = 0"))
    await gangs[0].claim(agents)
    await gangs[0].start()
    for rank in range(2):
        await turns.place_pending(work)
        assert (await gangs[2].task())["status"] == "pending", "another rank could still reach it"
        await gangs[0].complete(rank)
        await gangs[0].say(rank, "release")
    await turns.place_pending(work)
    assert (await gangs[2].task())["status"] == "assigned"


async def test_gang_that_can_never_be_is_refused_in_words_and_quotas_count_the_sum(
    fleet: Fleet, actors: Actors, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    body = {"image": "base", "command": ["x"], "nodes": 4, "gpus": 1}
    never = await fleet.client.post("/v1/tasks", headers=ada.headers, json=body)
    assert (never.status_code, never.json()["error"]) == (422, "unsatisfiable")
    assert never.json()["detail"] == (
        "4 hosts at once wanted, each with 1 GPU, 1 CPU and 2 GiB; there are 3 hosts like that."
    )
    await fleet.limit("user", ada.id, gpus=3, tasks=1)
    above = await fleet.client.post("/v1/tasks", headers=ada.headers, json=body | {"nodes": 2, "gpus": 2})
    assert (above.status_code, above.json()["error"]) == (409, "quota_exceeded")
    assert (await submit(fleet, ada.headers, 3)).made["status"] == "assigned", "it is one task"
    other = await submit(fleet, ada.headers, 1, gpus=0)
    assert (other.made["status"], other.made["reason"]) == ("pending", "quota")


async def test_waiting_gang_is_one_ask_that_nobody_overtakes(
    fleet: Fleet, actors: Actors, work: Work, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    full = await fleet.create(ada.headers, gpus=2, cpus=1)
    gang = await submit(fleet, ada.headers, 3, gpus=2)
    assert gang.made["reason"] == "no_free_gpu"
    assert gang.made["message"].startswith("3 hosts at once wanted; 2 have room now.")
    behind = await submit(fleet, ada.headers, 1, gpus=1, timeout_s=86400)
    assert behind.made["status"] == "pending", "room is there, and it would delay the head"
    async with work.session() as db:
        await waits.refresh(db)
    wait = (await gang.task())["wait"]
    assert (wait["position"], wait["counter_offers"][0]["fields"]) == (1, {"nodes": 2})
    await fleet.act(ada.headers, full.json()["id"], "stop")
    for agent in agents:
        await agent.obey()
    await turns.place_pending(work)
    assert (await gang.task())["status"] == "assigned"
    assert (await behind.task())["status"] == "pending"


async def test_gangs_at_the_same_moment_take_hosts_whole_and_end_once(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, agents: list[HollowAgent]
) -> None:
    ada = await actors.user("ada")
    gangs = await asyncio.gather(*(submit(fleet, ada.headers, 2, max_retries=0) for _ in range(5)))
    await check(app)
    for _ in range(2):
        await turns.place_pending(work)
    placed = [gang for gang in gangs if (await gang.task())["status"] == "assigned"]
    assert len(placed) in (2, 3), "six GPUs on three hosts; two free ones of one host are of no use"
    claimed = [(agent, one) for agent in agents for one in await agent.claim()]
    for gang in placed:
        mine = sorted(
            ((one["rank"], agent, one) for agent, one in claimed if one["task_id"] == gang.id),
            key=lambda one: one[0],
        )
        gang.agents, gang.specs = [agent for _, agent, _ in mine], [one for _, _, one in mine]
        await gang.start()
    await asyncio.gather(
        *(gang.complete(rank) for gang in placed[1:] for rank in range(2)),
        *(placed[0].fail(rank) for rank in range(2)),
        attempts.end_gangs(work),
    )
    ended = [(await gang.task())["status"] for gang in placed]
    assert ended == ["failed", *["succeeded"] * (len(placed) - 1)]
    async with app.state.database.sessions() as db:
        told = sa.text(
            "SELECT count(*) FROM events WHERE kind = 'task.status'"
            " AND data->>'to' IN ('succeeded', 'failed') AND data->>'from' <> data->>'to'"
        )
        assert await db.scalar(told) == len(placed), "each is told once"
    await check(app)
