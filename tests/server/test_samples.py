"""What heartbeats measured: kept once, shown by every server, written in batches, lost at the edge only."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text

from remotegpu_server.db import samples
from remotegpu_server.db.engine import connect
from remotegpu_server.db.samples import Sample, Samples


async def rows(app: FastAPI) -> list[Any]:
    await app.state.database.samples.write()
    async with app.state.database.sessions() as db:
        return list(await db.execute(text("SELECT host_id, at, host, gpus FROM host_samples ORDER BY at")))


def busy(agent: Any, percent: float, **more: Any) -> dict[str, Any]:
    metrics = {"utilization_percent": percent}
    return {"gpus": [{"uuid": one["uuid"], "metrics": metrics, **more} for one in agent.gpus]}


async def test_heartbeat_that_is_repeated_or_overtaken_counts_once_and_for_being_alive(
    fleet: Fleet, app: FastAPI
) -> None:
    agent = await fleet.host("one")
    beats = [(1, 10.0), (3, 30.0), (3, 30.0), (2, 20.0)]
    # The agent's clock goes back by an hour in between: nothing may be ordered by it.
    for number, (sequence, percent) in enumerate(beats):
        at = f"2026-11-24T0{9 - number}:00:00Z"
        answer = await agent.heartbeat(sequence=sequence, sampled_at=at, **busy(agent, percent))
        assert answer.status_code == 200, answer.text
    written = await rows(app)
    assert [next(iter(row.gpus.values()))["utilization_percent"] for row in written] == [10.0, 30.0]
    assert all(abs(datetime.now(UTC) - row.at) < timedelta(minutes=5) for row in written)
    await agent.register()
    assert (await agent.heartbeat(sequence=1, **busy(agent, 40.0))).status_code == 200
    assert len(await rows(app)) == 3, "a new session counts anew"


async def test_another_server_shows_what_this_one_received_and_the_newer_one_wins(
    fleet: Fleet, app: FastAPI, database_url: str
) -> None:
    agent = await fleet.host("one")
    await agent.heartbeat(**busy(agent, 10.0, highest={"utilization_percent": 90.0}))
    await app.state.database.samples.write()
    other = connect(database_url, pool_size=1)
    try:
        async with other.sessions() as db:
            seen = (await samples.newest(db, host_ids=[agent.host_id]))[agent.host_id]
            assert seen.gpus["GPU-one-0"] == {
                "utilization_percent": 10.0,
                "highest": {"utilization_percent": 90.0},
            }
            newer = Sample(
                host_id=agent.host_id, at=seen.at + timedelta(seconds=9), host={}, gpus={}, workloads={}
            )
            other.samples.put(newer)
            assert (await samples.newest(db, host_ids=[agent.host_id]))[agent.host_id] == newer
            await db.execute(text("UPDATE hosts SET connection = 'unreachable'"))
            assert await samples.newest(db, host_ids=[agent.host_id]) == {}, "a silent host shows nothing"
    finally:
        await other.close()


async def test_sample_that_no_database_takes_does_not_hold_up_the_others(app: FastAPI, work: Any) -> None:
    at = datetime.now(UTC)
    for number in range(5):
        host = {"cpu_percent": float("nan") if number == 2 else 1.0}
        app.state.database.samples.put(
            Sample(
                host_id=f"host-{number}", at=at + timedelta(seconds=number), host=host, gpus={}, workloads={}
            )
        )
    assert [row.host_id for row in await rows(app)] == ["host-0", "host-1", "host-3", "host-4"]


async def test_samples_wait_for_a_database_that_is_away_and_the_oldest_go_first(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "KEPT", 3)
    at = datetime.now(UTC)
    nowhere = connect("postgresql+psycopg://nobody@127.0.0.1:1/none", pool_size=1)
    waiting = Samples(nowhere.heartbeat_engine)
    for number in range(5):
        waiting.put(
            Sample(
                host_id="one", at=at + timedelta(seconds=number), host={"load_1m": 1}, gpus={}, workloads={}
            )
        )
    await waiting.write()
    await nowhere.close()
    waiting._engine = app.state.database.heartbeat_engine  # it is back
    await waiting.write()
    assert [row.at - at for row in await rows(app)] == [timedelta(seconds=number) for number in (2, 3, 4)]


async def test_failure_that_nobody_foresaw_does_not_end_the_writing(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "WRITE_EVERY_S", 0.01)
    writer = Samples(app.state.database.engine)
    insert = writer._insert
    failures = [RuntimeError("not foreseen")]

    async def fail_once(batch: list[Sample]) -> None:
        if failures:
            raise failures.pop()
        await insert(batch)

    monkeypatch.setattr(writer, "_insert", fail_once)
    writer.put(Sample(host_id="h", at=datetime.now(UTC), host={}, gpus={}, workloads={}))
    writer.start()
    async with asyncio.timeout(10):
        while not await rows(app):  # noqa: ASYNC110  only the database knows
            await asyncio.sleep(0.02)
    await writer.stop()
    assert failures == []


async def test_request_that_has_read_samples_does_not_wait_for_itself_when_a_day_begins(
    fleet: Fleet, app: FastAPI
) -> None:
    agent = await fleet.host("one")
    await agent.heartbeat()
    async with app.state.database.sessions() as db, asyncio.timeout(5):
        assert await samples.newest(db, host_ids=[agent.host_id])
        await app.state.database.samples.write()
        assert await db.scalar(text("SELECT count(*) FROM host_samples")) == 1


@pytest.mark.parametrize(
    ("table", "day", "expected"),
    [
        (samples.HOST_SAMPLES, "2026-12-31", ("host_samples_20261231", "2026-12-31", "2027-01-01")),
        (samples.HOURS, "2026-12-31", ("host_sample_hours_202612", "2026-12-01", "2027-01-01")),
        (samples.HOURS, "2027-02-01", ("host_sample_hours_202702", "2027-02-01", "2027-03-01")),
    ],
)
def test_partition_holds_its_day_or_month(table: Any, day: str, expected: tuple[str, ...]) -> None:
    name, first, after = table.partition(datetime.fromisoformat(day).date())
    assert (name, str(first), str(after)) == expected
