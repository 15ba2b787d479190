"""A random walk over everything at once, through the HTTP API, on a real PostgreSQL, against a model.

Hypothesis chooses the steps; ``tests/reference_model.py`` says what must come of each; the invariants are
checked after every one. ``REMOTEGPU_EXAMPLES=500`` walks longer, with fresh randomness (docs/testing.md).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from model_bench import MACHINES, TEAM, USERS, WORKSPACES, Bench, Clone
from reference_model import Env, Reservation, Task

from remotegpu_server.attempts import loop as attempts
from remotegpu_server.customers import loop as suspensions
from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.hosts import loop as hosts
from remotegpu_server.queue import preemption, turns
from remotegpu_server.reservations import loop as reservations

EXAMPLES = int(os.environ.get("REMOTEGPU_EXAMPLES", "0"))
STEPS = 50
GIB = 2**30
LIMITED = [
    ("user", "ada"), ("user", "bob"), ("workspace", TEAM), ("workspace", "own:eve"),
    ("customer", "default"), ("customer", "other"),
]  # fmt: skip
SHARES = {20: 0.25, 40: 0.5, 60: 0.75}
"""GiB of a GPU of 80, and how much of it that is."""
HOLDS_NOBODY_UP = {"quota_exceeded", "requested", "start_later"}
WEIGHTS = {
    "create": 8, "create_share": 6, "start": 4, "end": 9, "obey": 12, "report": 5, "late_report": 2,
    "silence": 1, "heartbeat": 1, "register": 1, "repair": 2, "operate": 2, "quota": 3, "suspend": 3,
    "reserve": 2, "end_reservation": 2, "tick": 6, "follow_orders": 4, "preempt": 7,
    "submit": 7, "work_on_tasks": 9, "attempt": 4, "stop_task": 2, "lose": 4, "retry_task": 2,
}  # fmt: skip
NEED_ONE = {"start", "end", "report"}
NEED_TASK = {"stop_task", "retry_task"}
T = TypeVar("T")
REACHED = (
    "start", "start of a share", "reservation", "start in a reservation", "preemption",
    "return of the preempted", "start of a task", "another attempt", "lost attempt",
)  # fmt: skip
"""What the walks must have come to, or they prove nothing about it. What is rarer is printed."""
BEGAN = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture(scope="module")
def bench(cluster: EmbeddedPostgres, template: str) -> Iterator[Bench]:
    name = "template_model"
    cluster.clone_database(template, name)
    with asyncio.Runner() as runner:
        made = Bench(cluster, name, runner)
        runner.run(made.fill())
        yield made


class Walk(RuleBasedStateMachine):
    """One example. One rule chooses among all steps by weight: Hypothesis would leave out half of the rules
    in each example, and most of these steps mean nothing without most of the others.
    """

    bench: Bench

    @initialize(full=strategies.booleans())
    def begin(self, full: bool) -> None:
        """An empty fleet, or one that is full of what may be preempted, with somebody who waits."""
        self.clone = Clone(self.bench)
        self.model, self.agents = self.clone.model, self.clone.agents
        self.numbers = itertools.count(1)
        self.transcript: list[tuple[str, dict[str, Any]]] = []
        for gpus in MACHINES.values() if full else ():
            self._create(Env("ada", TEAM, gpus, 0, preemptible=True), {}, waits=False)
        for host in MACHINES if full else ():
            self._obey(host)
        if full:
            self._create(Env("eve", "own:eve", 1, 0), {}, waits=True)

    def teardown(self) -> None:
        if hasattr(self, "clone"):
            self.clone.close()

    @rule(data=strategies.data())
    def step(self, data: strategies.DataObject) -> None:
        without = (NEED_ONE if not self.model.envs else set()) | (
            NEED_TASK if not self.model.tasks else set()
        )
        steps = [name for name, weight in WEIGHTS.items() for _ in range(weight) if name not in without]
        self.draw = data.draw
        getattr(self, self.draw(strategies.sampled_from(steps), "step"))()

    def _one_of(self, *choices: T) -> T:
        return self.draw(strategies.sampled_from(choices))

    # Steps of people.

    def create(self) -> None:
        user = self._one_of(*USERS)
        workspace, gpus = self._one_of(*WORKSPACES[user]), self._one_of(1, 2, 1, 3, 0, 4)
        env = Env(user, workspace, gpus, 0, preemptible=self._one_of(False, True))
        self._create(env, {}, waits=self._one_of(True, False))

    def create_share(self) -> None:
        user, gib = self._one_of(*USERS), self._one_of(*SHARES)
        env = Env(user, WORKSPACES[user][-1], 1, 0, part=SHARES[gib])
        self._create(env, {"gpu_memory_bytes": gib * GIB}, waits=self._one_of(True, False))

    def _create(self, env: Env, more: dict[str, Any], waits: bool) -> None:
        spec = {
            "name": f"e{next(self.numbers)}",
            "workspace": self.bench.workspaces[env.workspace],
            "image": "base",
            "gpus": env.gpus,
            "cpus": 1,
            "memory_bytes": GIB,
            "priority": env.priority,
            "preemptible": env.preemptible,
            "queue": waits,
        }
        answer = self.clone.ask_as(env.owner, "POST", "/v1/environments", spec | more)
        model = self.model
        if not model.may_act(env.owner):
            self._refused(answer, 403, "account_suspended")
        elif not model.within_quota(env):
            self._refused(answer, 409, "quota_exceeded")
            self.bench.reached[f"limit of a {answer.json()['data']['subject']}"] += 1
        elif not model.ever_fits(env.gpus):
            self._refused(answer, 422, "unsatisfiable")
        elif answer.status_code == 503:
            self._refused(answer, 503, "no_capacity")
            assert not waits
            assert not self._must_start(env)
        else:
            assert answer.status_code == 201, answer.text
            made = answer.json()
            must_start = self._must_start(env)
            model.create(made["id"], env, made["reservation_id"])
            self.clone.settle(places=True)
            assert env.host is not None or (waits and not must_start), made["message"]
            return
        self.clone.settle()

    def _must_start(self, env: Env | Task) -> bool:
        """Nothing waits and there is room: only a start is right."""
        waiting = any(one.status == "pending" for one in self.model.asks())
        return not waiting and bool(self.model.fits(env))

    def start(self) -> None:
        key = self._pick()
        env, model = self.model.envs[key], self.model
        answer = self.clone.ask_as(env.owner, "POST", f"/v1/environments/{key}:start", {})
        if not model.may_act(env.owner):
            self._refused(answer, 403, "account_suspended")
        elif env.status == "deleted":
            self._refused(answer, 404, "not_found")
        elif model.start(key) == "conflict":
            self._refused(answer, 409, "state_conflict")
        elif model.start(key) == "ok":
            assert answer.status_code == 200, answer.text
        elif not model.within_quota(env):
            self._refused(answer, 409, "quota_exceeded")
        elif not model.ever_fits(env.gpus):
            self._refused(answer, 422, "unsatisfiable")
        else:
            assert answer.status_code == 200, answer.text
            model.again(key, answer.json()["reservation_id"])
            self.clone.settle(places=True)
            return
        self.clone.settle()

    def end(self) -> None:
        key, verb = self._pick(), self._one_of("stop", "stop", "delete")
        env = self.model.envs[key]
        if verb == "stop":
            answer = self.clone.ask_as(env.owner, "POST", f"/v1/environments/{key}:stop")
        else:
            answer = self.clone.ask_as(env.owner, "DELETE", f"/v1/environments/{key}")
        if not self.model.may_act(env.owner) and verb == "delete":
            assert answer.status_code == 403, answer.text
        elif env.status == "deleted":
            self._refused(answer, 404, "not_found")
        else:
            assert answer.status_code in (200, 204), answer.text
            self.model.end(key, "stopped" if verb == "stop" else "deleted")
        self.clone.settle()

    def submit(self) -> None:
        user, gpus = self._one_of(*USERS), self._one_of(1, 0, 2, 1, 4)
        task = Task(user, self._one_of(*WORKSPACES[user]), gpus, 0)
        body = {
            "image": "base",
            "command": ["train"],
            "workspace": self.bench.workspaces[task.workspace],
            "gpus": gpus,
            "cpus": 1,
            "memory_bytes": GIB,
            "max_retries": task.max_retries,
            "retry_delay_s": 0,
        }
        answer = self.clone.ask_as(user, "POST", "/v1/tasks", body)
        model = self.model
        if not model.may_act(user):
            self._refused(answer, 403, "account_suspended")
        elif answer.status_code == 409:
            self._refused(answer, 409, "quota_exceeded")
            assert not model.within_quota(task)
        elif model.within_quota(task) and not model.ever_fits(gpus):
            self._refused(answer, 422, "unsatisfiable")
        else:
            assert answer.status_code == 201, answer.text
            (made,) = answer.json()["tasks"]
            must_start = self._must_start(task) and model.within_quota(task)
            model.submit(made["id"], task, made["reservation_id"])
            self.clone.settle(places=True)
            assert task.attempts or not must_start, made["message"]
            return
        self.clone.settle()

    def stop_task(self) -> None:
        key = self._one_of(*self.model.tasks)
        task = self.model.tasks[key]
        answer = self.clone.ask_as(task.owner, "POST", f"/v1/tasks/{key}:stop")
        if not self.model.may_act(task.owner):
            self._refused(answer, 403, "account_suspended")
        else:
            assert answer.status_code == 200, answer.text
            self.model.stop_task(key, "cancelled")
        self.clone.settle()

    def retry_task(self) -> None:
        key = self._one_of(*self.model.tasks)
        task = self.model.tasks[key]
        answer = self.clone.ask_as(task.owner, "POST", f"/v1/tasks/{key}:retry")
        if not self.model.may_act(task.owner):
            self._refused(answer, 403, "account_suspended")
        elif self.model.retry_task(key):
            assert answer.status_code == 200, answer.text
        else:
            self._refused(answer, 409, "state_conflict")
        self.clone.settle()

    # Steps of agents.

    def work_on_tasks(self) -> None:
        """What an agent does most of the time: claim, begin, end and remove."""
        host = self._one_of(*MACHINES)
        claimed = {one["id"] for one in self.bench.run(self.agents[host].claim())}
        assert claimed == self.model.claim(host)
        for key, task in self.model.held_attempts().items():
            attempt = task.attempts[key]
            if attempt.host != host:
                continue
            if attempt.status == "claimed":
                self._write(key, "accept")
                self._write(key, "start")
            elif attempt.told is not None and attempt.live:
                self._complete(key, "cancelled")
            elif attempt.live and self._one_of(False, True):
                self._complete(key, self._one_of("succeeded", "failed"))
            if not attempt.live:
                self._write(key, "release")
        self.clone.settle()

    def attempt(self) -> None:
        """Any write about any attempt, in time or not."""
        held = self.model.held_attempts()
        if not held:
            return
        key, verb = self._one_of(*held), self._one_of("accept", "start", "renew", "release")
        self._write(key, verb)
        self.clone.settle()

    def _write(self, key: str, verb: str) -> None:
        task = self.model.held_attempts()[key]
        answer = self.bench.run(self.agents[task.attempts[key].host].attempt(key, verb))
        done = self.model.release_attempt(key) if verb == "release" else self.model.advance(key, verb)
        assert (answer.status_code < 300) == done, answer.text
        assert done or answer.json()["error"] in ("attempt_final", "lease_expired")

    def _complete(self, key: str, outcome: str) -> None:
        """Delivered twice."""
        host = self.model.held_attempts()[key].attempts[key].host
        code = {"succeeded": 0, "failed": 1, "cancelled": 143}[outcome]
        for _ in range(2):
            answer = self.bench.run(
                self.agents[host].complete(key, status=outcome, exit_code=code, reason=outcome)
            )
            assert answer.status_code == 204 or outcome == "cancelled", answer.text
        self.model.complete(key, outcome)

    def lose(self) -> None:
        """A host was silent for so long that one of its attempts has surely ended."""
        held = [
            key for key, task in self.model.held_attempts().items() if task.attempts[key].status != "assigned"
        ]
        if not held:
            return
        key = self._one_of(*held)
        self.clone.sql("UPDATE attempts SET lost_at = now() - interval '1 s' WHERE id = :key", key=key)
        self.bench.run(attempts.give_up_lost(self.clone.work))
        assert self.model.release_attempt(key)
        self.bench.reached["lost attempt"] += 1
        self.clone.settle()
        self.tick()

    def report(self) -> None:
        key = self._pick()
        env = self.model.envs[key]
        host = env.host or self._one_of(*MACHINES)
        agent = self.agents[host]
        seen = self._one_of(
            "absent", "running", "pulling", "starting", "exited", "failed", "stopping", "unknown"
        )
        older, lost_epoch = self._one_of(0, 0, 0, 0, 1), self._one_of(0, 0, 0, 1)
        body = {
            "workload_id": key,
            "generation": max(env.generation - older, 1),
            "observed": seen,
            "epoch": agent.epoch - lost_epoch,
            **({"address": "http://192.0.2.1:4000"} if seen == "running" else {}),
        }
        for _ in range(self._one_of(1, 2)):
            self._say(host, body)
        self.transcript.append((host, body))

    def obey(self) -> None:
        """What an agent does most of the time: it is heard, and all that is wanted is so."""
        self._obey(self._one_of(*MACHINES))

    def _obey(self, host: str) -> None:
        answer = self.bench.run(self.agents[host].heartbeat())
        assert answer.status_code == 200, answer.text
        self.model.back(host)
        for key, env in self.model.envs.items():
            if env.host == host:
                wanted = env.desired == "running" and env.status != "failed"
                self.model.report(key, host, "running" if wanted else "absent", env.generation)
        self.bench.run(self.agents[host].obey())
        self.clone.settle()

    def late_report(self) -> None:
        """Any earlier message arrives once more."""
        if self.transcript:
            self._say(*self._one_of(*self.transcript))

    def _say(self, host: str, body: dict[str, Any]) -> None:
        agent, key, seen = self.agents[host], body["workload_id"], body["observed"]
        path = f"/v1/agent/workloads/{key}/observed"
        answer = self.bench.run(self.clone.client.put(path, json=body, headers=agent.headers))
        if body["epoch"] != agent.epoch:
            self._refused(answer, 409, "epoch_stale")
        elif seen == "unknown" or self.model.envs[key].host != host:
            assert answer.status_code in (204, 403, 409), (
                answer.text
            )  # changes nothing, which is checked below
        elif self.model.report(key, host, seen, body["generation"]):
            assert answer.status_code == 204, answer.text
        else:
            self._refused(answer, 409, "generation_stale")
        self.clone.settle()

    def silence(self) -> None:
        """Time passes on the database's clock without a word of this host."""
        host = self._one_of(*MACHINES)
        self.clone.sql(
            "UPDATE hosts SET last_heartbeat_at ="
            " CASE name WHEN :host THEN now() - interval '1 hour' ELSE now() END",
            host=host,
        )
        self.bench.run(hosts.judge_silence(self.clone.work))
        self.model.silence(host)
        self.clone.settle()

    def heartbeat(self) -> None:
        """Heard again, and what it says about its GPUs."""
        host, sick = self._one_of(*MACHINES), self._one_of((), (0,), (2,), (0, 1))
        agent = self.agents[host]
        reason = f"XID {next(self.numbers)}"  # one that was accepted before would be ignored
        gpus = [
            {"uuid": one["uuid"], "metrics": {}, "unhealthy_reason": reason if index in sick else None}
            for index, one in enumerate(agent.gpus)
        ]
        answer = self.bench.run(agent.heartbeat(gpus=gpus))
        assert answer.status_code == 200, answer.text
        self.model.back(host)
        health = self.model.hosts[host].health
        for index, one in enumerate(agent.gpus):
            if health[one["uuid"]] == "healthy" and index in sick:
                health[one["uuid"]] = "unhealthy"  # and nothing but a check or an admin puts it back
        self.clone.settle()

    def register(self) -> None:
        """The agent, or its whole machine, starts anew; a GPU may have gone or come back."""
        host, reboot, lost = self._one_of(*MACHINES), self._one_of(False, True), self._one_of((), (), (0,))
        agent, model = self.agents[host], self.model
        everything = self.bench.agents[host].gpus
        agent.gpus = [one for index, one in enumerate(everything) if index not in lost]
        if reboot:
            agent.boot_id = f"boot-{model.hosts[host].boots + 1}"
            model.reboot(host)
        else:
            model.back(host)
        answer = self.bench.run(agent.register(previous_epoch=agent.epoch))
        assert answer.status_code == 201, answer.text
        health = model.hosts[host].health
        there = {one["uuid"] for one in agent.gpus}
        for uuid, known in health.items():
            if uuid not in there:
                health[uuid] = "missing"
            elif known == "missing":
                health[uuid] = "unhealthy"
        self.clone.settle()

    # Steps of admins.

    def repair(self) -> None:
        """Every host takes work again, every GPU is taken back, no limit, nobody suspended."""
        for name, host in self.model.hosts.items():
            agent = self.agents[name]
            agent.gpus = list(self.bench.agents[name].gpus)
            answer = self.bench.run(agent.register(previous_epoch=agent.epoch))
            assert answer.status_code == 201, answer.text
            assert self.clone.ask_as_admin("POST", f"/v1/hosts/{name}:uncordon").status_code == 200
            self.model.back(name)
            host.operate("uncordon")
            for uuid in [uuid for uuid, health in host.health.items() if health != "healthy"]:
                path = f"/v1/gpus/{self.bench.gpus[uuid]}:restore"
                assert self.clone.ask_as_admin("POST", path, {"reason": "tested"}).status_code == 200
                host.health[uuid] = "healthy"
        for kind, name in LIMITED:
            if self.model.limits.pop(name, None) is not None:
                path = f"/v1/quotas/{kind}/{self.bench.workspaces.get(name, name)}"
                self.clone.ask_as_admin("PUT", path, {"limits": {"gpus": None}})
        for name in list(self.model.suspended):
            kind = "users" if name in USERS else "customers"
            assert self.clone.ask_as_admin("POST", f"/v1/{kind}/{name}:resume").status_code == 200
            del self.model.suspended[name]
        self.clone.settle()

    def operate(self) -> None:
        host, verb = self._one_of(*MACHINES), self._one_of("cordon", "uncordon", "drain_now", "drain")
        body = {"deadline_s": 0} if verb == "drain_now" else {}
        answer = self.clone.ask_as_admin("POST", f"/v1/hosts/{host}:{verb.removesuffix('_now')}", body)
        assert answer.status_code == 200, answer.text
        self.model.hosts[host].operate(verb)
        self.clone.settle()
        if verb == "drain_now" and self._one_of(True, True, False):
            self._follow()

    def quota(self) -> None:
        kind, name = self._one_of(*LIMITED)
        limit = self._one_of(None, 0, 1, 2, 3)
        path = f"/v1/quotas/{kind}/{self.bench.workspaces.get(name, name)}"
        answer = self.clone.ask_as_admin("PUT", path, {"limits": {"gpus": limit}})
        assert answer.status_code == 200, answer.text
        self.model.limits[name] = limit
        self.clone.settle()

    def suspend(self) -> None:
        kind, name = self._one_of(("users", "ada"), ("users", "eve"), ("customers", "other"))
        policy = self._one_of("stop", "resume", "stop_after_grace", "stop", "keep", "resume")
        verb, body = ("resume", None) if policy == "resume" else ("suspend", {"environments": policy})
        answer = self.clone.ask_as_admin("POST", f"/v1/{kind}/{name}:{verb}", body)
        assert answer.status_code == 200, answer.text
        self.model.suspended.pop(name, None)
        if verb == "suspend":
            self.model.suspended[name] = policy
        self.clone.settle()
        if policy == "stop" and self._one_of(True, True, False):
            self._follow()

    def reserve(self) -> None:
        """From now on, for two hours; and somebody of the workspace comes."""
        user, gpus = self._one_of("bob", "eve"), self._one_of(1, 2)
        workspace = WORKSPACES[user][-1]
        starts_at = BEGAN + timedelta(seconds=len(self.model.reservations))
        body = {
            "name": "course",
            "workspace": self.bench.workspaces[workspace],
            "gpus": gpus,
            "starts_at": starts_at.isoformat(),
            "ends_at": (BEGAN + timedelta(hours=3)).isoformat(),
        }
        answer = self.clone.ask_as_admin("POST", "/v1/reservations", body)
        if self.model.can_promise(gpus):
            assert answer.status_code == 201, answer.text
            self.bench.reached["reservation"] += 1
            self.model.reservations[answer.json()["id"]] = Reservation(workspace, gpus)
            self._create(Env(user, workspace, 1, 0), {}, waits=True)
        else:
            assert answer.status_code == 409, answer.text
            self.clone.settle()

    def end_reservation(self) -> None:
        """Given back, or its time is over. What runs in it goes on."""
        live = [key for key, one in self.model.reservations.items() if one.open]
        if not live:
            return
        key = self._one_of(*live)
        if self._one_of(True, False):
            answer = self.clone.ask_as_admin("POST", f"/v1/reservations/{key}:cancel")
            assert answer.status_code == 200, answer.text
        else:
            self.clone.sql("UPDATE reservations SET ends_at = now() WHERE id = :key", key=key)
            self.bench.run(reservations.turn(self.clone.work))
        self.model.reservations[key].open = False
        self.clone.settle()

    # Steps of the server itself.

    def tick(self) -> None:
        """The queue, which a start wakes again: what is free goes to who may have it, and the head first."""
        starts = -1
        while starts != self.bench.reached["start"]:
            starts = self.bench.reached["start"]
            self.bench.run(turns.place_pending(self.clone.work))
            self.model.withdraw_suspended()
            self.clone.settle(places=True)
        for key, reason in self.clone.queue():
            assert not self.model.startable(self.model.ask(key)), f"the head could start: {key} {reason}"
            if reason not in HOLDS_NOBODY_UP:
                break

    def follow_orders(self) -> None:
        """One pass over suspended accounts and over hosts that are emptied."""
        if self._one_of(True, False):
            for table in ("users", "customers"):
                self.clone.sql(
                    f"UPDATE {table} SET stop_environments_at = now() WHERE stop_environments_at IS NOT NULL"  # noqa: S608
                )
            self.model.end_grace()
        self._follow()

    def _follow(self) -> None:
        self.bench.run(suspensions.withdraw_and_stop(self.clone.work))
        self.bench.reached["stop by a suspension"] += self.model.stop_suspended()
        self.bench.run(hosts.follow_drains(self.clone.work))
        self.bench.reached["stop by a drain"] += self.model.empty_overdue()
        self.clone.settle()

    def preempt(self) -> None:
        """Whoever must make room is told, then stopped, then waits again."""
        for _ in range(self._one_of(1, 2, 3, 3)):
            self.bench.run(preemption.preempt(self.clone.work))
            self.clone.preempted()
            self.clone.settle()
            self.clone.sql("UPDATE environments SET preempt_at = now() WHERE preempt_at IS NOT NULL")
            leaving = {one.host for one in self.model.envs.values() if one.preempted and one.host}
            for host in sorted(leaving):
                self._obey(host)

    def _pick(self) -> str:
        return self._one_of(*self.model.envs)

    def _refused(self, answer: httpx.Response, status: int, code: str) -> None:
        assert (answer.status_code, answer.json().get("error")) == (status, code), answer.text


@pytest.mark.timeout(600 if not EXAMPLES else 36000)
def test_random_walks_agree_with_the_model(bench: Bench) -> None:
    class Here(Walk):
        pass

    Here.bench = bench
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES or 14,
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"walks: {dict(bench.reached)}")
    assert set(REACHED) <= {name for name, times in bench.reached.items() if times}, bench.reached
