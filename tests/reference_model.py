"""What the system should do, in plain Python: no database, no concurrency, no code of the server.

``tests/server/test_model.py`` does the same things to this and to the real server, and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count


@dataclass
class Gpus:
    """One host: its GPUs by UUID with their health, and whether it takes new work."""

    health: dict[str, str]
    connection: str = "online"
    cordoned: bool = False
    boots: int = 1

    @property
    def ready(self) -> bool:
        return self.connection == "online" and not self.cordoned


@dataclass
class Env:
    """One environment. ``host`` is set while it holds something; ``uuids`` are its GPUs."""

    owner: str
    gpus: int
    order: int
    status: str = "pending"
    desired: str = "running"
    generation: int = 1
    seen: str = "absent"
    host: str | None = None
    uuids: frozenset[str] = frozenset()

    @property
    def live(self) -> bool:
        return self.status not in ("stopped", "failed", "deleted")


@dataclass
class Model:
    """The whole system. ``customers`` maps users to their customer."""

    customers: dict[str, str]
    hosts: dict[str, Gpus]
    envs: dict[str, Env] = field(default_factory=dict)
    limits: dict[str, int | None] = field(default_factory=dict)
    """Concurrent GPUs by user or customer."""
    suspended: set[str] = field(default_factory=set)
    """Users and customers."""
    _orders: count[int] = field(default_factory=count)

    # What is allowed.

    def may_act(self, user: str) -> bool:
        return not {user, self.customers[user]} & self.suspended

    def used(self, subject: str) -> int:
        return sum(
            len(env.uuids) for env in self.envs.values() if subject in (env.owner, self.customers[env.owner])
        )

    def within_quota(self, user: str, gpus: int) -> bool:
        for subject in (user, self.customers[user]):
            limit = self.limits.get(subject)
            if gpus and limit is not None and self.used(subject) + gpus > limit:
                return False
        return True

    def free(self, host: str) -> set[str]:
        held = {uuid for env in self.envs.values() for uuid in env.uuids}
        return {uuid for uuid, health in self.hosts[host].health.items() if health == "healthy"} - held

    def fits(self, gpus: int) -> list[str]:
        """Hosts that can take it now."""
        return [name for name, host in self.hosts.items() if host.ready and len(self.free(name)) >= gpus]

    def ever_fits(self, gpus: int) -> bool:
        known = (sum(one != "missing" for one in host.health.values()) for host in self.hosts.values())
        return any(count >= gpus for count in known)

    def startable(self) -> list[Env]:
        """What waits, may run, and would fit this moment."""
        return [
            env
            for env in self.envs.values()
            if env.status == "pending"
            and self.may_act(env.owner)
            and self.within_quota(env.owner, env.gpus)
            and self.fits(env.gpus)
        ]

    # What happens.

    def create(self, key: str, user: str, gpus: int) -> None:
        self.envs[key] = Env(owner=user, gpus=gpus, order=next(self._orders))

    def grant(self, key: str, host: str, uuids: frozenset[str]) -> None:
        """The server placed it: right, if the rules allow it."""
        env = self.envs[key]
        assert env.status == "pending", f"{env.status} was placed"
        assert env.desired == "running"
        assert self.may_act(env.owner), "a suspended account got a GPU"
        assert self.within_quota(env.owner, env.gpus), "more than the quota"
        assert self.hosts[host].ready, f"placed on a host that is not ready: {self.hosts[host]}"
        assert uuids <= self.free(host), "a GPU that is not free or not healthy"
        assert len(uuids) == env.gpus
        env.status, env.host, env.uuids = "starting", host, uuids

    def start(self, key: str) -> str:
        """``ok``: nothing to do, ``conflict``, or ``again``: a new generation waits."""
        env = self.envs[key]
        if env.status in ("stopped", "failed"):
            if env.host is not None:
                return "conflict"
            return "again"
        return "ok" if env.desired == "running" else "conflict"

    def again(self, key: str) -> None:
        env = self.envs[key]
        env.status, env.desired, env.seen = "pending", "running", "absent"
        env.generation += 1
        env.order = next(self._orders)

    def end(self, key: str, desired: str) -> None:
        """Stop (``stopped``) or delete."""
        env = self.envs[key]
        if desired == "stopped" and (env.desired != "running" or not env.live):
            return
        if desired == env.desired:
            return
        env.desired = desired
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

    def withdraw_suspended(self) -> None:
        """What a pass of the queue does with what waits for a suspended account."""
        for env in self.envs.values():
            if env.status == "pending" and not self.may_act(env.owner):
                env.status, env.desired = "stopped", "stopped"
