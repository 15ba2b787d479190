"""Usage statistics against rows that were put there."""

from __future__ import annotations

import csv
import io
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet, gpu
from sqlalchemy import text

from remotegpu_server.testing import Actors

PERIOD = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-10T00:00:00Z"}


async def _held(app: FastAPI, name: str, begin: str, end: str | None) -> None:
    """Pretend that the environment of that name held its GPUs from then to then, and waited a minute."""
    async with app.state.database.sessions() as db:
        await db.execute(text("SET LOCAL session_replication_role = replica"))
        given = {"name": name, "begin": begin, "end": end}
        which = "environment_id = (SELECT id FROM environments WHERE name = :name)"
        released = (
            "released_at = CAST(:end AS timestamptz),"
            " release_proof = CASE WHEN CAST(:end AS text) IS NULL THEN NULL ELSE 'absent' END"
        )
        await db.execute(
            text(
                "UPDATE allocations SET allocated_at = CAST(:begin AS timestamptz),"  # noqa: S608
                f" {released} WHERE {which}"
            ),
            given,
        )
        await db.execute(
            text(
                "UPDATE placements SET placed_at = CAST(:begin AS timestamptz),"  # noqa: S608
                f" queued_at = CAST(:begin AS timestamptz) - interval '1 minute', {released} WHERE {which}"
            ),
            given,
        )
        await db.commit()


async def _usage(client: httpx.AsyncClient, headers: dict[str, str], **params: Any) -> list[dict[str, Any]]:
    answer = await client.get("/v1/usage", headers=headers, params=PERIOD | params)
    assert answer.status_code == 200, answer.text
    records: list[dict[str, Any]] = answer.json()["records"]
    return records


async def test_usage_is_split_by_day_and_keeps_simulated_apart(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    await fleet.host("h1", gpus=2)
    real = await fleet.host("h2", gpus=0)
    real.gpus = [gpu("GPU-real", model="A100-80GB", simulated=False)]
    await real.register()
    ada, ben = await actors.user("ada"), await actors.user("ben")
    await fleet.create(ada.headers, "two", gpus=2)
    await fleet.create(ben.headers, "one", gpus=1)
    await _held(app, "two", "2026-01-02T22:00:00Z", "2026-01-04T01:00:00Z")
    await _held(app, "one", "2025-12-31T23:00:00Z", "2026-01-01T02:00:00Z")
    days = await _usage(client, fleet.admin)
    assert [(one["day"], one["simulated"], one["gpu_hours"], one["allocations"]) for one in days] == [
        ("2026-01-01", False, 2.0, 0),
        ("2026-01-02", True, 4.0, 2),
        ("2026-01-03", True, 48.0, 0),
        ("2026-01-04", True, 2.0, 0),
    ]
    people = await _usage(client, fleet.admin, group_by=["user", "gpu_model"])
    found = {one["user"]: one for one in people}
    assert (found["ada"]["gpu_hours"], found["ada"]["starts"], found["ada"]["wait_mean_s"]) == (54.0, 1, 60.0)
    assert (found["ben"]["gpu_hours"], found["ben"]["starts"], found["ben"]["wait_mean_s"]) == (2.0, 0, None)
    assert found["ada"]["day"] is None
    # Give back what the fixture's invariants would miss.
    for name in ("two", "one"):
        async with app.state.database.sessions() as db:
            await db.execute(text("SET LOCAL session_replication_role = replica"))
            await db.execute(
                text(
                    "UPDATE environments SET status = 'stopped', stopped_at = now(), secret_env = NULL,"
                    " desired = 'stopped' WHERE name = :name"
                ),
                {"name": name},
            )
            await db.execute(text("UPDATE tokens SET revoked_at = now() WHERE kind = 'workload'"))
            await db.commit()


async def test_live_allocations_count_up_to_now(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await fleet.create(ada.headers, gpus=1)
    async with app.state.database.sessions() as db:
        await db.execute(text("UPDATE allocations SET allocated_at = now() - interval '90 minutes'"))
        await db.commit()
    mine = (await client.get("/v1/usage/mine", headers=ada.headers)).json()["records"]
    assert sum(one["gpu_hours"] for one in mine) == pytest.approx(1.5, abs=0.01)


async def test_usage_of_another_customer_is_hidden_and_members_see_their_own(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    olga, eve = await actors.user("olga", role="owner"), await actors.user("eve", role="owner", customer="x")
    await fleet.create(ada.headers, gpus=1)
    path = "/v1/usage?group_by=user"
    assert (await client.get(path, headers=ada.headers)).status_code == 403
    assert [one["user"] for one in (await client.get(path, headers=olga.headers)).json()["records"]] == [
        "ada"
    ]
    assert (await client.get(path, headers=eve.headers)).json()["records"] == []
    assert (await client.get(f"{path}&customer=default", headers=eve.headers)).status_code == 404
    assert (await client.get("/v1/usage?group_by=price", headers=olga.headers)).status_code == 422
    backwards = "/v1/usage?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z"
    assert (await client.get(backwards, headers=olga.headers)).status_code == 422


async def test_csv_defuses_formulas(fleet: Fleet, actors: Actors, client: httpx.AsyncClient) -> None:
    agent = await fleet.host("h1", gpus=1, model="=HYPERLINK(1)")
    ada = await actors.user("ada")
    assert agent.gpus
    await fleet.create(ada.headers, gpus=1)
    answer = await client.get("/v1/usage.csv?group_by=gpu_model", headers=fleet.admin)
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert row["gpu_model"] == "'=HYPERLINK(1)"
