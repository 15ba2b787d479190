"""What the system should do, in plain Python: no database, no concurrency, no code of the server.

``tests/server/test_model.py`` does the same things to this and to the real server, and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count


@dataclass
class Gpus:
    """One host: its GPUs by UUID with their health, and whether it takes new work."""

    health: dict[str, str]
    connection: str = "online"
    operational: str = "available"
    overdue: bool = False
    """Its drain had a deadline, which has passed."""
    boots: int = 1

    @property
    def ready(self) -> bool:
        return self.connection == "online" and self.operational == "available"

    def operate(self, verb: str) -> None:
        """``cordon``, ``uncordon``, ``drain``, or ``drain_now``: a drain whose deadline is now."""
        to = {"cordon": "cordoned", "uncordon": "available"}.get(verb, "draining")
        self.operational, self.overdue = to, verb == "drain_now"


@dataclass
class Reservation:
    """GPUs that are promised to a workspace, from now on."""

    workspace: str
    gpus: int
    open: bool = True


@dataclass
class Env:
    """One environment. ``host`` is set while it holds something; ``uuids`` are its GPUs."""

    owner: str
    workspace: str
    gpus: int
    order: int
    part: float = 1.0
    """How much of each of its GPUs it holds: below 1 it is a share, which others may share."""
    preemptible: bool = False
    status: str = "pending"
    desired: str = "running"
    generation: int = 1
    seen: str = "absent"
    host: str | None = None
    uuids: frozenset[str] = frozenset()
    reservation: str | None = None
    announced: bool = False
    """Its owner was told that it will be preempted."""
    preempted: bool = False
    """It was stopped for somebody else, and waits again once it is gone."""

    @property
    def live(self) -> bool:
        return self.status not in ("stopped", "failed", "deleted")

    @property
    def priority(self) -> int:
        return 7 if self.preemptible else 5


@dataclass
class Attempt:
    """One try that still holds its host and GPUs."""

    host: str
    uuids: frozenset[str]
    status: str = "assigned"
    told: str | None = None
    """Why its agent was told to end it."""

    @property
    def live(self) -> bool:
        return self.status in ("assigned", "claimed", "accepted", "running")


@dataclass
class Task:
    """One task, with the attempts that hold something: at most one of them has not ended."""

    owner: str
    workspace: str
    gpus: int
    order: int
    max_retries: int = 1
    part: float = 1.0
    priority: int = 5
    status: str = "pending"
    number: int = 1
    """Of the attempt that it has, had last, or waits for."""
    tried: bool = False
    """There was an attempt with this number."""
    retries: int = 0
    stopping: bool = False
    reservation: str | None = None
    attempts: dict[str, Attempt] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        return self.status in ("pending", "assigned", "running")

    @property
    def uuids(self) -> frozenset[str]:
        return frozenset(uuid for one in self.attempts.values() for uuid in one.uuids)

    def now(self) -> tuple[str, Attempt] | None:
        """The attempt that has not ended."""
        return next(((key, one) for key, one in self.attempts.items() if one.live), None)


@dataclass
class Model:
    """The whole system. ``customers`` maps users to their customer."""

    customers: dict[str, str]
    hosts: dict[str, Gpus]
    envs: dict[str, Env] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    limits: dict[str, int | None] = field(default_factory=dict)
    """Concurrent GPUs by user, workspace or customer."""
    suspended: dict[str, str] = field(default_factory=dict)
    """Users and customers, with what becomes of what runs: ``keep``, ``stop``, ``stop_after_grace``."""
    _orders: count[int] = field(default_factory=count)

    # What is allowed.

    def may_act(self, user: str) -> bool:
        return not self.suspended.keys() & {user, self.customers[user]}

    def asks(self) -> list[Env | Task]:
        """All that waits for something, holds it, or did."""
        return [*self.envs.values(), *self.tasks.values()]

    def ask(self, key: str) -> Env | Task:
        return self.envs[key] if key in self.envs else self.tasks[key]

    def used(self, subject: str) -> float:
        return sum(len(env.uuids) * env.part for env in self.asks() if subject in self._subjects(env))

    def _subjects(self, env: Env | Task) -> tuple[str, ...]:
        return env.owner, env.workspace, self.customers[env.owner]

    def within_quota(self, env: Env | Task) -> bool:
        for subject in self._subjects(env):
            limit = self.limits.get(subject)
            if env.gpus and limit is not None and self.used(subject) + env.gpus * env.part > limit:
                return False
        return True

    def taken(self) -> Counter[str]:
        """How much of each GPU is held, by UUID."""
        held: Counter[str] = Counter()
        for env in self.asks():
            for uuid in env.uuids:
                held[uuid] += env.part  # type: ignore[assignment]  # parts of a GPU
        return held

    def _healthy(self, host: str) -> set[str]:
        return {uuid for uuid, health in self.hosts[host].health.items() if health == "healthy"}

    def free(self, host: str) -> set[str]:
        """Healthy GPUs of which nobody holds anything."""
        return self._healthy(host) - self.taken().keys()

    def has_room(self, host: str, env: Env | Task) -> set[str]:
        """Healthy GPUs that the environment could take, not looking at promises."""
        taken = self.taken()
        return {uuid for uuid in self._healthy(host) if taken[uuid] + env.part <= 1}

    def fits(self, env: Env | Task) -> list[str]:
        """Hosts that can surely take it now, wherever the promised GPUs are."""
        promised = self.promised_to_others(env)

        def room(host: str) -> int:
            free = len(self.free(host))
            return len(self.has_room(host, env)) - free + max(free - promised, 0)

        return [
            name
            for name, host in self.hosts.items()
            if host.ready and (not env.gpus or room(name) >= env.gpus)
        ]

    def ever_fits(self, gpus: int) -> bool:
        known = (sum(one != "missing" for one in host.health.values()) for host in self.hosts.values())
        return any(count >= gpus for count in known)

    def startable(self, env: Env | Task) -> bool:
        """It waits, may run, and would fit this moment."""
        waits = env.status == "pending" and self.may_act(env.owner)
        return waits and self.within_quota(env) and bool(self.fits(env))

    # Promises.

    def promised_to_others(self, env: Env | Task) -> int:
        """GPUs that it must leave alone: promised, and not in use by those they are promised to."""
        return sum(
            max(one.gpus - self._serving([key]), 0)
            for key, one in self.reservations.items()
            if one.open and key != env.reservation
        )

    def _serving(self, reservations: Iterable[str]) -> int:
        keys = set(reservations)
        healthy = {uuid for host in self.hosts for uuid in self._healthy(host)}
        return len({uuid for env in self.asks() if env.reservation in keys for uuid in env.uuids} & healthy)

    def can_promise(self, gpus: int) -> bool:
        """What is free or serves a promise, less all that is promised, is enough."""
        live = {key: one for key, one in self.reservations.items() if one.open}
        there = sum(len(self.free(host)) for host in self.hosts) + self._serving(live)
        return there - sum(one.gpus for one in live.values()) >= gpus

    def joins(self, env: Env | Task, reservation: str | None) -> bool:
        """Whether an environment that starts belongs in this reservation, or rightly in none."""
        fitting = {
            key
            for key, one in self.reservations.items()
            if one.open and one.workspace == env.workspace and self._asked(key, env) + env.gpus <= one.gpus
        }
        if not env.gpus or env.part < 1:
            fitting = set()
        return reservation in fitting if fitting else reservation is None

    def _asked(self, reservation: str, besides: Env | Task) -> int:
        return sum(
            env.gpus
            for env in self.asks()
            if env is not besides and env.live and env.reservation == reservation
        )

    # What happens.

    def create(self, key: str, env: Env, reservation: str | None) -> None:
        assert self.joins(env, reservation), f"in {reservation}"
        env.order, env.reservation = next(self._orders), reservation
        self.envs[key] = env

    def grant(self, key: str, host: str, uuids: frozenset[str]) -> None:
        """The server placed it: right, if the rules allow it."""
        env = self.envs[key]
        assert env.desired == "running"
        self._may_have(env, host, uuids)
        env.status, env.host, env.uuids = "starting", host, uuids

    def _may_have(self, env: Env | Task, host: str, uuids: frozenset[str]) -> None:
        assert env.status == "pending", f"{env.status} was placed"
        assert self.may_act(env.owner), "a suspended account got a GPU"
        assert self.within_quota(env), "more than the quota"
        assert self.hosts[host].ready, f"placed on a host that is not ready: {self.hosts[host]}"
        assert uuids <= self.has_room(host, env), "a GPU that has no room or is not healthy"
        assert len(uuids) == env.gpus
        before = sum(len(self.free(one)) for one in self.hosts)
        newly = uuids & self.free(host)
        kept = min(self.promised_to_others(env), before)
        assert not newly or before - len(newly) >= kept, "took what is promised to others"

    def start(self, key: str) -> str:
        """``ok``: nothing to do, ``conflict``, or ``again``: a new generation waits."""
        env = self.envs[key]
        if env.status in ("stopped", "failed"):
            if env.host is not None:
                return "conflict"
            return "again"
        return "ok" if env.desired == "running" else "conflict"

    def again(self, key: str, reservation: str | None) -> None:
        env = self.envs[key]
        assert self.joins(env, reservation), f"in {reservation}"
        env.reservation = reservation
        self._new_generation(env)
        env.order = next(self._orders)

    def _new_generation(self, env: Env) -> None:
        env.status, env.desired, env.seen = "pending", "running", "absent"
        env.announced = env.preempted = False
        env.generation += 1

    def end(self, key: str, desired: str) -> None:
        """Stop (``stopped``) or delete. What was preempted does not come back after it."""
        env = self.envs[key]
        env.preempted = False
        if desired == "stopped" and (env.desired != "running" or not env.live):
            return
        if desired == env.desired:
            return
        env.desired, env.announced = desired, False
        if env.host is None:
            env.status = desired
        elif env.status != "failed":
            env.status = "stopping"

    def report(self, key: str, host: str, seen: str, generation: int) -> bool:
        """An agent's word with a current epoch. False: it is refused as stale."""
        env = self.envs[key]
        if generation != env.generation or env.host != host:
            return False
        if seen == "absent":
            self._absent(env)
            return True
        env.seen = seen
        if env.status == "failed":
            return True
        env.status = self._project(env)
        return True

    def _project(self, env: Env) -> str:
        if env.desired != "running":
            return "stopping"
        if env.seen in ("exited", "failed"):
            return "failed"
        return "running" if env.seen == "running" else "starting"

    def _absent(self, env: Env) -> None:
        env.seen = "absent"
        if env.desired == "running" and env.status != "failed":
            env.status = "failed"  # it vanished: wanted, so nothing is given back yet
            return
        self._released(env)

    def _released(self, env: Env) -> None:
        env.host, env.uuids, env.seen = None, frozenset(), "absent"
        if env.desired == "deleted":
            env.status = "deleted"
        elif env.status != "failed":
            env.status = "failed" if env.desired == "running" else "stopped"

    def silence(self, host: str) -> None:
        if self.hosts[host].connection != "online":
            return
        self.hosts[host].connection = "unreachable"
        for env in self.envs.values():
            if env.host == host and env.status in ("starting", "running", "stopping"):
                env.status = "unreachable"

    def back(self, host: str) -> None:
        self.hosts[host].connection = "online"
        for env in self.envs.values():
            if env.host == host and env.status == "unreachable":
                env.status = self._project(env)

    def reboot(self, host: str) -> None:
        """A new boot: nothing of the old one runs."""
        self.back(host)
        self.hosts[host].boots += 1
        for env in self.envs.values():
            if env.host == host:
                self._released(env)
        for task, key in self._attempts_on(host):
            if task.attempts[key].status != "assigned":
                self._gone(task, key)

    def empty_overdue(self) -> int:
        """What a pass does with what is left on a host whose drain has a deadline that has passed."""
        left = [
            key for key, env in self.envs.items() if env.host is not None and self.hosts[env.host].overdue
        ]
        return self._stop_unasked(left) + self._send_back_overdue()

    def withdraw_suspended(self) -> None:
        """What a pass of the queue does with what waits for a suspended account."""
        for env in self.envs.values():
            if env.status == "pending" and not self.may_act(env.owner):
                env.status, env.desired, env.preempted = "stopped", "stopped", False
        for task in self.tasks.values():
            if task.status == "pending" and not self.may_act(task.owner):
                task.status = "cancelled"

    def end_grace(self) -> None:
        """The time that suspended accounts were given is over."""
        for name, policy in self.suspended.items():
            if policy == "stop_after_grace":
                self.suspended[name] = "stop"

    def stop_suspended(self) -> int:
        """What the loop of suspensions does: withdraw what waits, stop what runs where the policy says so."""
        self.withdraw_suspended()
        for key, task in self.tasks.items():
            if "stop" in map(self.suspended.get, (task.owner, self.customers[task.owner])):
                self.stop_task(key, "suspended")
        accounts = {key: (env.owner, self.customers[env.owner]) for key, env in self.envs.items()}
        return self._stop_unasked(
            key for key, held_by in accounts.items() if "stop" in map(self.suspended.get, held_by)
        )

    def _stop_unasked(self, keys: Iterable[str]) -> int:
        """Stopped by the system: what stops already, for whatever reason, goes on as it is. How many."""
        stopped = [key for key in keys if self.envs[key].desired == "running" and self.envs[key].live]
        for key in stopped:
            self.end(key, "stopped")
        return len(stopped)

    def may_preempt(self, env: Env) -> bool:
        """It runs, agreed to be stopped, and somebody with a better priority waits."""
        better = any(
            one.status == "pending" and one.priority < env.priority and self.may_act(one.owner)
            for one in self.asks()
        )
        return env.preemptible and env.status == "running" and env.desired == "running" and better

    def preempt(self, env: Env) -> None:
        assert env.announced, "stopped without notice"
        env.desired, env.status, env.preempted = "stopped", "stopping", True

    def queue_preempted_again(self) -> None:
        for env in self.envs.values():
            if env.preempted and env.status == "stopped":
                self._new_generation(env)

    # Tasks.

    def submit(self, key: str, task: Task, reservation: str | None) -> None:
        assert self.joins(task, reservation), f"in {reservation}"
        task.order, task.reservation = next(self._orders), reservation
        self.tasks[key] = task

    def grant_attempt(self, key: str, attempt: str, host: str, uuids: frozenset[str]) -> None:
        """The server placed it: right, if the rules allow it."""
        task = self.tasks[key]
        assert task.now() is None, "a second live attempt"
        assert not task.tried, "the same number twice"
        self._may_have(task, host, uuids)
        task.status, task.tried = "assigned", True
        task.attempts[attempt] = Attempt(host, uuids)

    def held_attempts(self) -> dict[str, Task]:
        return {key: task for task in self.tasks.values() for key in task.attempts}

    def _attempts_on(self, host: str) -> list[tuple[Task, str]]:
        return [(task, key) for key, task in self.held_attempts().items() if task.attempts[key].host == host]

    def claim(self, host: str) -> set[str]:
        found = {key for task, key in self._attempts_on(host) if task.attempts[key].status == "assigned"}
        for key in found:
            self.held_attempts()[key].attempts[key].status = "claimed"
        return found

    def advance(self, key: str, verb: str) -> bool:
        """``accept``, ``start`` or ``renew``. False: refused."""
        task = self.held_attempts()[key]
        attempt = task.attempts[key]
        if not attempt.live or attempt.status == "assigned":
            return False
        if verb == "accept" and attempt.status == "claimed":
            attempt.status = "accepted"
        if verb == "start":
            if attempt.status == "claimed":
                return False
            attempt.status = task.status = "running"
        return True

    def complete(self, key: str, outcome: str) -> None:
        """``succeeded``, ``failed`` or ``cancelled``, of one that was accepted."""
        task = self.held_attempts()[key]
        attempt = task.attempts[key]
        if outcome == "cancelled" and attempt.told == "host_drained":
            outcome = "preempted"
        attempt.status = outcome
        self._ended(task, outcome)

    def _ended(self, task: Task, outcome: str) -> None:
        if outcome in ("lost", "preempted") and task.stopping:
            task.status = "cancelled"
        elif outcome == "preempted":
            self._again(task)
        elif outcome == "lost" and task.retries < task.max_retries:
            task.retries += 1
            self._again(task)
        else:
            task.status = "failed" if outcome == "lost" else outcome

    def _again(self, task: Task) -> None:
        task.status, task.tried, task.number = "pending", False, task.number + 1

    def release_attempt(self, key: str) -> bool:
        """The proof that nothing of it is left. False: refused, since its host never had it."""
        task = self.held_attempts()[key]
        if task.attempts[key].status == "assigned":
            return False
        self._gone(task, key)
        return True

    def _gone(self, task: Task, key: str) -> None:
        attempt = task.attempts.pop(key)
        if attempt.live:
            self._ended(task, "lost")

    def stop_task(self, key: str, why: str) -> None:
        task = self.tasks[key]
        if not task.live or task.stopping:
            return
        task.stopping = True
        if not self._end_attempt(task, why, "cancelled"):
            task.status = "cancelled"

    def _end_attempt(self, task: Task, why: str, outcome: str) -> bool:
        """True: its agent is told; otherwise it has ended, and what was claimed is held until the proof."""
        found = task.now()
        if found is None:
            return False
        key, attempt = found
        if attempt.status in ("accepted", "running"):
            attempt.told = attempt.told or why
            return True
        if attempt.status == "assigned":
            del task.attempts[key]
        attempt.status = outcome
        return False

    def _send_back_overdue(self) -> int:
        sent = 0
        for task in self.tasks.values():
            found = task.now()
            if found is None or task.stopping or found[1].told or not self.hosts[found[1].host].overdue:
                continue
            sent += 1
            if not self._end_attempt(task, "host_drained", "preempted"):
                self._again(task)
        return sent

    def retry_task(self, key: str) -> bool:
        """False: it has not ended, or well."""
        task = self.tasks[key]
        if task.status not in ("failed", "cancelled"):
            return False
        task.number += task.tried
        task.status, task.tried, task.retries, task.stopping = "pending", False, 0, False
        task.order = next(self._orders)
        return True
