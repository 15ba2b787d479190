"""Loops: one leader, fenced writes, failures that do not end anything, retention."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from remotegpu_server import leadership, loops, retention
from remotegpu_server.authz import SYSTEM
from remotegpu_server.crypto import Vault
from remotegpu_server.db import tables
from remotegpu_server.db.engine import Database, connect
from remotegpu_server.events import service as events
from remotegpu_server.leadership import Candidate, LeadershipLost
from remotegpu_server.loops import Loop, LoopRunner, Work, run_guarded
from remotegpu_server.settings import Settings


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    made = connect(settings.database_url)
    yield made
    await made.close()


@pytest.fixture
async def work(database: Database, settings: Settings) -> Work:
    candidate = Candidate("loops")
    async with database.sessions() as db:
        assert await candidate.acquire(db)
        await db.commit()
    return Work(
        database=database,
        settings=settings,
        vault=Vault(settings.secret_key),
        candidate=candidate,
        leading_since=time.monotonic(),
    )


async def _acquire(database: Database, candidate: Candidate) -> bool:
    async with database.sessions() as db:
        led = await candidate.acquire(db)
        await db.commit()
        return led


async def _expire(database: Database) -> None:
    async with database.sessions() as db:
        await db.execute(sa.text("UPDATE leadership SET expires_at = now() - interval '1 second'"))
        await db.commit()


async def test_one_of_two_leads_and_the_other_takes_over_with_a_new_term(database: Database) -> None:
    first, second = Candidate("loops"), Candidate("loops")
    assert await _acquire(database, first)
    assert not await _acquire(database, second)
    assert await _acquire(database, first)
    assert first.term == 1
    await _expire(database)
    assert await _acquire(database, second)
    assert second.term == 2


def test_takeover_fits_its_promise() -> None:
    assert leadership.LEASE_S + leadership.RENEW_S <= 15


async def test_past_leader_cannot_commit(database: Database, work: Work) -> None:
    await _expire(database)
    assert await _acquire(database, Candidate("loops"))
    with pytest.raises(LeadershipLost):
        async with work.session() as db:
            await events.record(db, kind="x.y", subject_type="host", subject_id="h", actor=SYSTEM, message="")
    async with database.sessions() as db:
        assert await db.scalar(sa.select(sa.func.count()).select_from(tables.Event)) == 0


async def test_loop_that_raises_is_tried_again(database: Database, settings: Settings) -> None:
    passes: list[int] = []
    recovered = asyncio.Event()

    async def tick(_work: Work) -> None:
        passes.append(1)
        if len(passes) == 1:
            raise RuntimeError("poisoned item")
        recovered.set()

    runner = LoopRunner(
        [Loop(name="test", every_s=0.01, run=tick)],
        database=database,
        settings=settings,
        vault=Vault(settings.secret_key),
    )
    runner.start()
    async with asyncio.timeout(10):
        await recovered.wait()
    assert runner.leading
    await runner.stop()
    await runner.stop()
    # It resigned, so the next process leads at once.
    assert await _acquire(database, Candidate("loops"))


async def test_failed_pass_is_reported_not_raised(work: Work) -> None:
    async def tick(_work: Work) -> None:
        raise RuntimeError("no")

    assert not await run_guarded(Loop(name="test", every_s=1, run=tick), work)


IN_BATCHES = {
    "audit/loop.py", "environments/history.py", "invariants.py", "metrics/loop.py", "retention.py",
}  # fmt: skip
"""Each transaction of theirs is about many rows alike, none of them somebody's."""
GUARDED_ABOVE = {"outbox/webhook_loop.py"}
"""Its item is a webhook with its deliveries: ``_deliver_all`` guards the loop over these."""


def _unguarded(node: ast.AST, *, looping: bool = False) -> Iterator[int]:
    """Lines where an item of a pass is worked on, and what it raises would end the pass."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        looping = False
    if isinstance(node, ast.With) and "by_itself(" in ast.unparse(node.items[0]):
        looping = False
    if looping and isinstance(node, ast.Call):
        given = [node.func, *node.args, *(word.value for word in node.keywords)]
        if any(ast.unparse(one) in ("work", "self._work", "work.session") for one in given):
            yield node.lineno
    for field, value in ast.iter_fields(node):
        inside = isinstance(node, ast.For) and field == "body"
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _unguarded(child, looping=looping or inside)


def test_no_item_of_a_pass_holds_up_those_behind_it() -> None:
    """What an item raises is logged and counted (``by_itself``); the others are none the worse."""
    root = Path(loops.__file__).parent
    found = [
        f"{path.relative_to(root)}:{line}"
        for path in sorted(root.rglob("*.py"))
        if str(path.relative_to(root)) not in IN_BATCHES | GUARDED_ABOVE
        for line in _unguarded(ast.parse(path.read_text()))
    ]
    assert found == []


async def test_retention_removes_the_old_and_keeps_the_new(database: Database, work: Work) -> None:
    async with database.sessions() as db:
        for age in ("1 second", "1 year"):
            await db.execute(
                sa.text(
                    "INSERT INTO events (at, kind, subject_type, subject_id, actor, message)"
                    " VALUES (now() - CAST(:age AS interval), 'x.y', 'host', 'h', 'system', '')"
                ),
                {"age": age},
            )
            await db.execute(
                sa.text(
                    "INSERT INTO login_failures (subject, at) VALUES ('a', now() - CAST(:age AS interval))"
                ),
                {"age": age},
            )
            await db.execute(
                sa.text(
                    "INSERT INTO tokens (id, secret_hash, kind, scopes, expires_at)"
                    " VALUES (:id, '', 'service', '{}', now() - CAST(:age AS interval))"
                ),
                {"id": f"tok-{age}", "age": age},
            )
        await db.execute(
            sa.text(
                "INSERT INTO tokens (id, secret_hash, kind, scopes) VALUES ('tok-live', '', 'service', '{}')"
            )
        )
        await db.commit()
    await retention.sweep(work)
    async with database.sessions() as db:
        assert await db.scalar(sa.select(sa.func.count()).select_from(tables.Event)) == 1
        assert await db.scalar(sa.select(sa.func.count()).select_from(tables.LoginFailure)) == 1
        assert set(await db.scalars(sa.select(tables.Token.id))) == {"tok-1 second", "tok-live"}


_HANGS = """
import asyncio, os, sys, time
from remotegpu_server.crypto import Vault
from remotegpu_server.db.engine import connect
from remotegpu_server.loops import Loop, LoopRunner
from remotegpu_server.settings import Settings

async def blocks(work):
    time.sleep(600)

async def swallows(work):
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

async def works(work):
    pass

async def main(kind, url, key):
    settings = Settings(database_url=url, secret_key=key, watchdog_s=1.0)
    database = connect(url)
    run = {"blocks": blocks, "swallows": swallows, "works": works}[kind]
    loop = Loop(name=kind, every_s=0.1, run=run)
    runner = LoopRunner([loop], database=database, settings=settings, vault=Vault(key))
    runner.start()
    await asyncio.sleep(8)
    await runner.stop()
    await database.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(("kind", "status"), [("blocks", 70), ("swallows", 70), ("works", 0)])
def test_loop_that_hangs_ends_the_process_and_one_that_works_does_not(
    settings: Settings, kind: str, status: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGS, kind, settings.database_url, settings.secret_key],
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert done.returncode == status, done.stderr
    assert (f"hung=['{kind}']" in done.stdout) == (status != 0)
