"""The checks find what they are for: each row that breaks one is named."""

from __future__ import annotations

from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text

from remotegpu_server.invariants import violations
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
