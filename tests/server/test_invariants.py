"""The checks find what they are for: each row that breaks one is named."""

from __future__ import annotations

import os
import subprocess
import sys

from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text

from remotegpu_server import invariants, observability
from remotegpu_server.invariants import violations
from remotegpu_server.loops import Work
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors


async def test_broken_rows_are_named(fleet: Fleet, actors: Actors, app: FastAPI) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    async with app.state.database.sessions() as db:
        assert await violations(db) == {}
        await db.execute(text("UPDATE environments SET gpus = 2 WHERE id = :key"), {"key": key})
        assert await violations(db) == {"I5 a placement holds the GPUs that were asked for": [key]}
        await db.rollback()
        await db.execute(
            text(
                "UPDATE placements SET released_at = now(), release_proof = 'admin'"
                " WHERE environment_id = :key"
            ),
            {"key": key},
        )
        assert set(await violations(db)) == {
            "I6 allocations are released with their placement",
            "I6 a live status has a live placement",
        }
        await db.rollback()
        await db.execute(text("UPDATE hosts SET cpus = 0, registered_at = now() - interval '1 hour'"))
        assert list(await violations(db)) == ["I3 no host is over-booked by a grant"]
        await db.rollback()


async def test_loop_publishes_what_is_broken_and_that_it_was_mended(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    name = "I5 a placement holds the GPUs that were asked for"
    for gpus, broken in ((2, 1.0), (1, 0.0)):
        async with app.state.database.sessions() as db:
            await db.execute(text("UPDATE environments SET gpus = :gpus"), {"gpus": gpus})
            await db.commit()
        await invariants.publish(work)
        assert _published() == dict.fromkeys(invariants.CHECKS, 0.0) | {name: broken}, key


def _published() -> dict[str, float]:
    samples = observability.INVARIANT_VIOLATIONS.collect()[0].samples
    return {sample.labels["invariant"]: sample.value for sample in samples}


async def test_command_names_what_is_broken(
    fleet: Fleet, actors: Actors, app: FastAPI, settings: Settings
) -> None:
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    assert _command(settings) == (0, f"all {len(invariants.CHECKS)} invariants hold\n")
    async with app.state.database.sessions() as db:
        await db.execute(text("ALTER TABLE placements DISABLE TRIGGER release_once"))
        await db.execute(text("UPDATE environments SET gpus = 2"))
        await db.commit()
    status, said = _command(settings)
    assert status == 1
    assert set(said.splitlines()) == {
        "I7 I10 I24 the database's own guards are in place: placements.release_once",
        f"I5 a placement holds the GPUs that were asked for: {key}",
    }
    async with app.state.database.sessions() as db:
        await db.execute(text("ALTER TABLE placements ENABLE TRIGGER release_once"))
        await db.execute(text("UPDATE environments SET gpus = 1"))
        await db.commit()


def _command(settings: Settings) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "remotegpu_server", "check-invariants"],
        env=os.environ | {"REMOTEGPU_DATABASE_URL": settings.database_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout


async def test_ids_of_broken_rows_are_found_for_each_kind_of_damage(
    fleet: Fleet, actors: Actors, app: FastAPI
) -> None:
    """Each statement breaks what the database itself does not refuse, and its check says so."""
    await fleet.host("h1", gpus=2)
    ada = await actors.user("ada")
    await fleet.create(ada.headers, "a", gpus=1)
    damage = {
        "I10 every move of the last day is in the table": """
            INSERT INTO events (kind, subject_type, subject_id, actor, message, data) VALUES
            ('environment.status', 'environment', 'x', 'x', '', '{"from": "deleted", "to": "running"}')
        """,
        "I11 what has ended says when and why": "UPDATE environments SET status = 'failed'",
        "I12 a placement is of a generation that its environment had": "UPDATE placements SET generation = 9",
        "I20 nothing is placed before a host's first inventory": "UPDATE hosts SET registered_at = NULL",
        "I24 the sealed audit trail has no gap": """
            UPDATE audit_records SET sequence = id * 2 WHERE id IN (SELECT id FROM audit_records LIMIT 2)
        """,
        "I25 a suspended account has no live token": "UPDATE users SET status = 'suspended'",
    }
    for name, statement in damage.items():
        async with app.state.database.sessions() as db:
            await db.execute(text(statement))
            assert name in await violations(db)
            await db.rollback()
