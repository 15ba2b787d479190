"""Hundreds of tasks on 20 agents, which are killed at random, and the server twice: each ends exactly once.

``REMOTEGPU_TASKS=1000`` for the thousand, ``REMOTEGPU_SEED`` for the same kills again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from joined_host import until
from sqlalchemy import make_url

import remotegpu
from remotegpu_agent import runner
from remotegpu_agent.settings import save_credential
from remotegpu_server.db.engine import connect, libpq_conninfo
from remotegpu_server.invariants import assert_invariants
from remotegpu_server.testing import LiveServer

AGENTS = 20
TASKS = int(os.environ.get("REMOTEGPU_TASKS", "160"))
KILLS = TASKS // 16
SUBMITTERS = 8
LEASES = {"RENEW": "2", "LEASE": "8", "FENCE": "14", "FENCE_GRACE": "2", "LOST": "18"}
LONG_AWAY = 2
"""Agents that stay away until their attempts are lost, so that others run those tasks again."""
AWAY_S = 22.0
ENDS_WITHIN_S = 1.2 * TASKS + 60
"""For a machine that does much else besides."""
SCRIPT = """
exec 9>>"$LEDGER/locks/$REMOTEGPU_TASK_ID"
flock -n 9 && alone=alone || alone=TWICE_AT_ONCE
echo "$REMOTEGPU_TASK_ID $REMOTEGPU_ATTEMPT_ID $alone" >>"$LEDGER/ledger"
sleep 0.1
"""
"""The kernel gives the lock back when the last process of a run is gone, however it went."""


class Agents:
    """Twenty hosts on this machine, each with its agent."""

    def __init__(self, live: LiveServer, admin: remotegpu.Client, folder: Path) -> None:
        self._folder = folder
        self._nursery = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("agent_nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.host_ids: list[str] = []
        self._pids: dict[int, int] = {}
        for number in range(AGENTS):
            name = f"host-{number}"
            self.host_ids.append(admin.hosts.create(name=name).id)
            secret = admin.hosts.create_enrollment_token(name).secret
            credential = asyncio.run(runner.enroll(live.url, secret))
            self.state(number).mkdir(parents=True)
            save_credential(self.state(number), credential)
            self.start(number)

    def state(self, number: int) -> Path:
        return self._folder / f"host-{number}"

    def start(self, number: int) -> None:
        state = str(self.state(number))
        line = [f"{state}.log", "run", "--state-dir", state, "--runtime", "process"]
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(line) + "\n")
        self._nursery.stdin.flush()
        self._pids[number] = int(self._nursery.stdout.readline())

    def kill(self, number: int) -> None:
        """As the kernel does when it wants memory: nothing is told to anybody."""
        self._end(self._pids.pop(number), signal.SIGKILL)

    @property
    def alive(self) -> list[int]:
        return sorted(self._pids)

    def stop(self) -> None:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGTERM)
        for pid in self._pids.values():
            until("an agent ends", lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]
        self._pids.clear()

    def close(self) -> None:
        self.stop()
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        self._nursery.wait(10)
        assert self._nursery.stdout is not None
        self._nursery.stdout.close()

    def _end(self, pid: int, how: signal.Signals) -> None:
        os.kill(pid, how)
        until("an agent is gone", lambda: not Path(f"/proc/{pid}").exists())


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[LiveServer]:
    made = LiveServer(database_url=database_url, folder=tmp_path)
    start(made)
    yield made
    made.stop()


def start(server: LiveServer) -> None:
    """Gives up what is silent after seconds, not minutes."""
    server.start(
        REMOTEGPU_LOG_LEVEL="info",
        **{f"REMOTEGPU_ATTEMPT_{name}_S": value for name, value in LEASES.items()},
    )


@pytest.fixture
def admin(server: LiveServer) -> Iterator[remotegpu.Client]:
    with remotegpu.Client(server.url, server.admin_headers["Authorization"].split()[1]) as client:
        yield client


@pytest.fixture
def agents(server: LiveServer, admin: remotegpu.Client, tmp_path: Path) -> Iterator[Agents]:
    made = Agents(server, admin, tmp_path / "hosts")
    try:
        until("all are ready", lambda: sum(host.ready for host in admin.hosts.list()) == AGENTS)
        yield made
    finally:
        made.close()


@pytest.mark.timeout(ENDS_WITHIN_S + 120)
def test_every_task_ends_exactly_once_whatever_is_killed(
    agents: Agents, server: LiveServer, admin: remotegpu.Client, database_url: str, tmp_path: Path
) -> None:
    seed = int(os.environ.get("REMOTEGPU_SEED") or random.SystemRandom().randrange(2**32))
    print(f"again with REMOTEGPU_SEED={seed}")
    ledger = tmp_path / "ledger"
    (ledger / "locks").mkdir(parents=True)
    admin.images.create(name="shell", reference="process/sh", runtime="process", command=["sh"])
    began = time.monotonic()
    chance = random.Random(seed)  # noqa: S311  no secret
    with (
        ThreadPoolExecutor(SUBMITTERS) as pool,
        psycopg.connect(libpq_conninfo(make_url(database_url)), autocommit=True) as db,
    ):
        many = TASKS // SUBMITTERS
        submitting = [pool.submit(submit, server, ledger, many) for _ in range(SUBMITTERS)]
        kills = kill_at_random(chance, agents, server, db, submitting)
        held = "SELECT count(*) FROM placements WHERE released_at IS NULL"
        until("everything is given back", lambda: db.execute(held).fetchone() == (0,), timeout_s=60)
        print(f"{kills} kills, {time.monotonic() - began:.0f} s")
        nothing_is_live(db)
        attempts = ended_once(db)
    asyncio.run(invariants_hold(database_url))
    runs = [line.split() for line in (ledger / "ledger").read_text().splitlines()]
    assert {how for _, _, how in runs} == {"alone"}
    assert [one for one, times in Counter(attempt for _, attempt, _ in runs).items() if times > 1] == []
    assert len({task for task, _, _ in runs}) == TASKS
    agents.stop()
    nothing_is_left(agents, attempts)


def submit(server: LiveServer, ledger: Path, many: int) -> None:
    """One after the other, whatever becomes of the server; each is small enough for a place at once."""
    with remotegpu.Client(server.url, server.admin_headers["Authorization"].split()[1]) as client:
        for _ in range(many):
            key = str(uuid.uuid4())
            deadline = time.monotonic() + ENDS_WITHIN_S
            while not submitted(client, ledger, key):
                assert time.monotonic() < deadline, "the server takes no task"
                time.sleep(0.5)


def submitted(client: remotegpu.Client, ledger: Path, key: str) -> bool:
    try:
        client.tasks.submit(
            image="shell",
            command=["sh", "-c", SCRIPT],
            env={"LEDGER": str(ledger)},
            cpus=0.02,
            memory_bytes=2**26,
            max_retries=10,
            retry_delay_s=0,
            idempotency_key=key,
        )
    except (
        remotegpu.ConnectionFailed,
        remotegpu.RequestTimeout,
        remotegpu.ServerError,
        remotegpu.Unavailable,
    ):
        return False
    return True


def kill_at_random(
    chance: random.Random,
    agents: Agents,
    server: LiveServer,
    db: psycopg.Connection[tuple[object, ...]],
    submitting: list[Future[None]],
) -> Counter[str]:
    """Until all tasks have ended."""
    kills: Counter[str] = Counter()
    back_at: dict[int, float] = {}
    server_dies = [TASKS // 3, 2 * TASKS // 3]
    agent_dies = sorted(chance.sample(range(TASKS * 9 // 10), KILLS))
    """When so many tasks have ended."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while True:
        by_status = dict(db.execute("SELECT status, count(*)::int FROM tasks GROUP BY 1").fetchall())
        ended = sum(by_status.get(status, 0) for status in ("succeeded", "failed", "cancelled", "timed_out"))
        if ended == TASKS:
            break
        assert time.monotonic() < deadline, f"not all end: {by_status}"
        for one in submitting:
            if one.done():
                one.result()
        if server_dies and ended >= server_dies[0]:
            del server_dies[0]
            server.kill()
            kills["server"] += 1
            time.sleep(chance.uniform(0, 1))
            start(server)
        for number in [one for one, at in back_at.items() if at <= time.monotonic()]:
            del back_at[number]
            agents.start(number)
        while agents.alive and agent_dies and ended >= agent_dies[0]:
            del agent_dies[0]
            number = chance.choice(agents.alive)
            agents.kill(number)
            kills["agent"] += 1
            long = kills["agent"] <= LONG_AWAY
            back_at[number] = time.monotonic() + (AWAY_S if long else chance.uniform(0, 1.5))
        time.sleep(0.2)
    for number in back_at:
        agents.start(number)
    return kills


def nothing_is_live(db: psycopg.Connection[tuple[object, ...]]) -> None:
    for live in (
        "SELECT id FROM attempts WHERE finished_at IS NULL",
        "SELECT id FROM allocations WHERE released_at IS NULL",
    ):
        assert db.execute(live).fetchall() == []


def ended_once(db: psycopg.Connection[tuple[object, ...]]) -> set[str]:
    """Every task, by what it is now and by all that was ever told of it; the ids of all attempts."""
    tasks = db.execute("SELECT status, count(*) FROM tasks GROUP BY status").fetchall()
    assert tasks == [("succeeded", TASKS)]
    ends = db.execute(
        "SELECT subject_id FROM events WHERE kind = 'task.status' AND data ->> 'to' = 'succeeded'"
    ).fetchall()
    assert Counter(times for times in Counter(ends).values()) == {1: TASKS}
    ended = db.execute(
        "SELECT task_id FROM attempts WHERE status = 'succeeded' GROUP BY task_id HAVING count(*) <> 1"
    ).fetchall()
    assert ended == []
    return {str(one) for (one,) in db.execute("SELECT id FROM attempts").fetchall()}


async def invariants_hold(database_url: str) -> None:
    database = connect(database_url)
    async with database.sessions() as db:
        await assert_invariants(db)
    await database.close()


def nothing_is_left(agents: Agents, attempts: set[str]) -> None:
    """Neither folders, nor processes, nor control groups."""
    folders = [path for number in range(AGENTS) for path in (agents.state(number) / "attempts").glob("*")]
    assert folders == []
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_of(pid, agents.host_ids)] == []
    groups = [path for path in Path("/sys/fs/cgroup").glob("**/remotegpu-tasks/*") if path.name in attempts]
    assert groups == []


def _is_of(pid: str, host_ids: list[str]) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return any(f"REMOTEGPU_PROCESS_MARKER={host_id}/".encode() in environ for host_id in host_ids)
