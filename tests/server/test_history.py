"""Finished rows leave the hot tables, and nothing is lost by it."""

from __future__ import annotations

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text

from remotegpu_server.environments import history
from remotegpu_server.loops import Work
from remotegpu_server.testing import Actors

_TABLES = ("environments", "placements", "allocations")


async def counts(app: FastAPI) -> dict[str, int]:
    names = (*_TABLES, *(f"{name}_history" for name in _TABLES), "all_allocations")
    async with app.state.database.sessions() as db:
        return {
            name: await db.scalar(text(f"SELECT count(*) FROM {name}"))  # noqa: S608
            for name in names
        }


async def age(app: FastAPI) -> None:
    """Everything that has ended did so long ago."""
    async with app.state.database.sessions() as db:
        await db.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in (
            "UPDATE placements SET released_at = released_at - interval '31 days'",
            "UPDATE allocations SET released_at = released_at - interval '31 days'",
            "UPDATE environments SET stopped_at = stopped_at - interval '31 days'",
        ):
            await db.execute(text(statement))
        await db.commit()


async def test_finished_rows_move_to_history_and_running_ones_stay(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=3)
    ada = await actors.user("ada")
    deleted, stopped, runs = [
        (await fleet.create(ada.headers, name, gpus=1)).json()["id"] for name in ("one", "two", "three")
    ]
    await agent.obey()
    await client.delete(f"/v1/environments/{deleted}", headers=ada.headers)
    await fleet.act(ada.headers, stopped, "stop")
    await agent.obey()
    await history.move_finished(work)
    young = await counts(app)
    assert (young["environments"], young["placements_history"]) == (3, 0), "not yet old enough"
    await age(app)
    await history.move_finished(work)
    assert await counts(app) == {
        "environments": 2,
        "placements": 1,
        "allocations": 1,
        "environments_history": 1,
        "placements_history": 2,
        "allocations_history": 2,
        "all_allocations": 3,
    }
    gone = await client.get(f"/v1/environments/{deleted}", headers=ada.headers)
    assert gone.status_code == 404
    assert (await fleet.get(ada.headers, stopped))["status"] == "stopped"
    assert (await fleet.get(ada.headers, runs))["status"] == "running"
    again = await fleet.act(ada.headers, stopped, "start")
    assert again.status_code == 200, again.text


async def test_placement_that_an_admin_released_stays_until_its_host_proved_it_gone(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    await agent.obey()
    await fleet.act(ada.headers, key, "stop")
    assert (await fleet.act(fleet.admin, key, "release")).status_code == 200
    await age(app)
    await history.move_finished(work)
    assert (await agent.desired())[key]["desired"] == "absent"
    await agent.obey()
    await history.move_finished(work)
    assert (await counts(app))["placements_history"] == 1


async def test_nothing_that_refers_to_a_finished_row_holds_it_here(app: FastAPI) -> None:
    """A table that refers to environments without ON DELETE would stop the move."""
    async with app.state.database.sessions() as db:
        found = await db.execute(
            text(
                "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'f'"
                " AND confrelid::regclass::text IN ('environments', 'placements', 'allocations')"
                " AND confdeltype NOT IN ('c', 'n')"
            )
        )
        assert {table for table, _ in found} <= set(_TABLES)
