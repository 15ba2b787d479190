"""Starts the parts, starts them again when they die, and stops them in order.

Children have sessions of their own and stand in a state file with their start times, so that a killed
supervisor leaves nothing that the next `up` or `down` could not find.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remotegpu_server import embedded_postgres
from remotegpu_server.standalone import signals
from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import Installation, read_json, tail, write_private
from remotegpu_server.standalone.process import Identity, end_group, start_detached

STOP_ORDER = ("hub", "proxy", "agent", "server")
"""The database comes last of all and is no child: see embedded_postgres."""

_LOG_LIMIT_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True)
class Pace:
    """When a part that died is started again, in seconds."""

    first_pause: float = 0.5
    longest_pause: float = 30.0
    steady_after: float = 60.0
    """A part that ran this long starts its count of failures anew."""
    failures_allowed: int = 8
    """After so many failures in a row it stays down, until the next `up`."""
    tick: float = 0.25


@dataclass(frozen=True)
class Service:
    """One part as a subprocess."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    is_ready: Callable[[], bool]
    ready_within_s: float = 60.0
    patience_s: float = 15.0
    """How long it may take to end when asked."""
    advice: str = "Read the log; `make down` and `make up` start everything afresh."


@dataclass
class _Child:
    service: Service
    process: subprocess.Popen[bytes]
    identity: Identity | None
    began: float
    failures: int = 0
    start_again_at: float | None = None
    given_up: bool = False


@dataclass
class Supervisor:
    """The parts of one installation."""

    installation: Installation
    say: Callable[[str], None]
    pace: Pace = field(default_factory=Pace)
    facts: dict[str, Any] = field(default_factory=dict)
    """What `status` tells besides the processes; secrets have no place in it."""
    embedded_database: bool = False
    _children: dict[str, _Child] = field(default_factory=dict)
    _database_failures: int = 0
    _database_again_at: float = 0.0

    def start(self, service: Service) -> None:
        """Start a part and wait until it is ready. Raises StepFailed."""
        with signals.held():
            self._children[service.name] = child = self._launch(service)
            self.save()
        deadline = time.monotonic() + service.ready_within_s
        log = self.installation.log(service.name)
        while not service.is_ready():
            if child.process.poll() is not None:
                code = child.process.returncode
                raise StepFailed(service.name, f"it ended with exit code {code}", service.advice, log=log)
            if time.monotonic() > deadline:
                seconds = f"{service.ready_within_s:.0f} s"
                raise StepFailed(service.name, f"it was not ready within {seconds}", service.advice, log=log)
            time.sleep(0.05)

    def watch(self) -> None:
        """Keep everything running until a signal handler raises."""
        while True:
            self.tick()
            time.sleep(self.pace.tick)

    def tick(self) -> None:
        """Look once at every part."""
        self._tend_database()
        for child in self._children.values():
            self._tend(child)
        for log in self.installation.logs.glob("*.log"):
            _cap(log)

    def stop(self, name: str) -> bool:
        """Stop a part; False if it was not started."""
        child = self._children.pop(name, None)
        if child is None:
            return False
        if child.identity is not None:
            child.identity.stop(child.service.patience_s)
        child.process.wait(timeout=10)
        self.save()
        return True

    def save(self) -> None:
        """Write down who runs, for `status`, `down` and the next `up`."""
        own = Identity.of(os.getpid())
        state = {
            "supervisor": vars(own) if own else None,
            "children": {
                name: vars(child.identity)
                for name, child in self._children.items()
                if child.identity is not None
            },
            "given_up": sorted(name for name, child in self._children.items() if child.given_up),
            "facts": self.facts,
        }
        write_private(state_file(self.installation), json.dumps(state, indent=2))

    def _launch(self, service: Service) -> _Child:
        process = start_detached(
            service.argv,
            env=service.env,
            log=self.installation.log(service.name),
            cwd=self.installation.home,
        )
        return _Child(service, process, Identity.of(process.pid), began=time.monotonic())

    def _tend(self, child: _Child) -> None:
        if child.given_up or child.process.poll() is None:
            return
        now = time.monotonic()
        name = child.service.name
        if child.start_again_at is None:
            end_group(child.process.pid)  # what it left would hold its ports
            child.failures = 1 if now - child.began > self.pace.steady_after else child.failures + 1
            if child.failures > self.pace.failures_allowed:
                child.given_up = True
                log = self.installation.log(name)
                self.say(
                    f"{name} failed {child.failures} times in a row and stays down. {child.service.advice}"
                )
                self.say(f"Last lines of {log}:\n{tail(log)}")
                self.save()
                return
            pause = self._pause(child.failures)
            child.start_again_at = now + pause
            self.say(
                f"{name} ended with exit code {child.process.returncode}; starting it again in {pause:.1f} s"
            )
        if now >= child.start_again_at:
            with signals.held():
                started = self._launch(child.service)
                child.process, child.identity, child.began = started.process, started.identity, started.began
                child.start_again_at = None
                self.save()

    def _tend_database(self) -> None:
        now = time.monotonic()
        if not self.embedded_database or now < self._database_again_at:
            return
        if embedded_postgres.status(self.installation.database_dir) is not None:
            self._database_failures = 0
            return
        try:
            embedded_postgres.ensure_running(self.installation.database_dir)
            self.say("the database ended and is started again")
        except embedded_postgres.EmbeddedPostgresError as error:
            self._database_failures += 1
            pause = self._pause(self._database_failures)
            self._database_again_at = now + pause
            self.say(f"the database does not start, next try in {pause:.0f} s: {error}")

    def _pause(self, failures: int) -> float:
        return float(min(self.pace.first_pause * 2 ** (failures - 1), self.pace.longest_pause))


def state_file(installation: Installation) -> Path:
    return installation.run / "state.json"


@dataclass(frozen=True)
class Recorded:
    """What the state file says, checked against the processes of now."""

    supervisor: Identity | None
    children: dict[str, Identity]
    given_up: list[str]
    facts: dict[str, Any]


def read_state(installation: Installation) -> Recorded:
    """The processes of this installation that are alive."""
    state = read_json(state_file(installation))
    supervisor = Identity(**state["supervisor"]) if state.get("supervisor") else None
    children = {name: Identity(**entry) for name, entry in state.get("children", {}).items()}
    return Recorded(
        supervisor=supervisor if supervisor and supervisor.alive else None,
        children={name: identity for name, identity in children.items() if identity.alive},
        given_up=state.get("given_up", []),
        facts=state.get("facts", {}),
    )


def stop_orphans(installation: Installation) -> list[str]:
    """Stop the parts that a killed supervisor left running; answers their names in the order of stopping."""
    children = read_state(installation).children
    stopped = [name for name in STOP_ORDER if name in children]
    for name in stopped:
        children[name].stop(patience_s=15)
    return stopped


def _cap(log: Path) -> None:
    """Keep a log and its predecessor within bounds. Writers append, so truncating under them is safe."""
    try:
        if log.stat().st_size <= _LOG_LIMIT_BYTES:
            return
        log.with_suffix(".log.1").write_bytes(log.read_bytes())
        with log.open("r+b") as file:
            file.truncate(0)
    except FileNotFoundError:
        return
