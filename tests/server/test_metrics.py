"""History of measurements: rolled up, kept for its time, read in steps by those who may."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
from fastapi import FastAPI
from hollow_agent import Fleet
from prometheus_client import REGISTRY
from sqlalchemy import text

from remotegpu.types.metrics import Resolution
from remotegpu_server.alerts import loop as alerts
from remotegpu_server.db import samples
from remotegpu_server.db.samples import HOST_SAMPLES, HOURS, MINUTES, Sample
from remotegpu_server.loops import Work
from remotegpu_server.metrics import loop, queries
from remotegpu_server.testing import Actors

GIB = 2**30


def put(app: FastAPI, at: datetime, percent: float, highest: float | None = None, **more: Any) -> None:
    doc = {"utilization_percent": percent, "memory_used_bytes": 80 * GIB}
    if highest is not None:
        doc |= {"highest": {"utilization_percent": highest}}
    app.state.database.samples.put(
        Sample(
            **(
                {
                    "host_id": "host-a",
                    "at": at,
                    "host": {"cpu_percent": 5.5},
                    "gpus": {"GPU-1": doc},
                    "workloads": {"env-1": {"cpu_percent": 12.5, "gpu_memory_bytes": {"GPU-1": 1}}},
                }
                | more
            )
        )
    )


async def documents(app: FastAPI, table: str) -> list[tuple[datetime, int, dict[str, Any]]]:
    async with app.state.database.sessions() as db:
        found = await db.execute(
            text(f"SELECT at, n, host, gpus, workloads FROM {table} ORDER BY at")  # noqa: S608
        )
        return [
            (row.at, row.n, {"host": row.host, "gpus": row.gpus, "workloads": row.workloads}) for row in found
        ]


async def test_samples_become_minutes_and_a_late_one_still_counts(app: FastAPI, work: Work) -> None:
    now = datetime.now(UTC)
    minute = now.replace(second=0, microsecond=0) - timedelta(minutes=2)
    for second, percent, highest in ((1, 10.0, 90.0), (11, 20.0, None), (21, 60.0, None)):
        put(app, minute + timedelta(seconds=second), percent, highest)
    await app.state.database.samples.write()
    await loop.keep(work)
    await loop.keep(work)
    ((at, n, found),) = await documents(app, "host_sample_minutes")
    assert (at, n) == (minute, 3)
    gpu = found["gpus"]["GPU-1"]
    assert (gpu["utilization_percent"], gpu["mean"], gpu["highest"]) == (
        60.0,
        {"utilization_percent": 30.0},
        {"utilization_percent": 90.0},
    )
    assert gpu["memory_used_bytes"] == 80 * GIB, "what does not differ is stored once"
    assert found["host"]["cpu_percent"] == 5.5
    assert found["workloads"]["env-1"]["cpu_percent"] == 12.5

    put(app, minute + timedelta(seconds=5), 110.0)  # written late, by a server that was slow
    await app.state.database.samples.write()
    await loop.keep(work)
    ((_, n, found),) = await documents(app, "host_sample_minutes")
    assert (n, found["gpus"]["GPU-1"]["mean"]) == (4, {"utilization_percent": 50.0})


async def test_minutes_become_an_hour_once_it_is_over(app: FastAPI, work: Work) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    for minute, percent, highest in ((1, 10.0, None), (1, 20.0, 90.0), (59, 60.0, None), (60, 1.0, None)):
        put(app, hour + timedelta(minutes=minute, seconds=percent / 10), percent, highest)
    await app.state.database.samples.write()
    await loop.keep(work)
    await loop.keep(work)
    hours = await documents(app, "host_sample_hours")
    assert [(at, n) for at, n, _ in hours] == [(hour, 3), (hour + timedelta(hours=1), 1)]
    gpu = hours[0][2]["gpus"]["GPU-1"]
    assert (gpu["utilization_percent"], gpu["mean"], gpu["highest"]) == (
        60.0,
        {"utilization_percent": 30.0},
        {"utilization_percent": 90.0},
    )


async def test_partitions_are_made_ahead_and_old_ones_dropped(app: FastAPI, work: Work) -> None:
    today = datetime.now(UTC).date()
    old = {
        HOST_SAMPLES: today - timedelta(days=2),
        MINUTES: today - timedelta(days=15),
        HOURS: date(2020, 5, 1),
    }
    async with app.state.database.sessions() as db:
        for table, day in old.items():
            await samples.make_partition(db, table, day)
            await samples.make_partition(db, table, today - timedelta(days=1))
        await db.commit()
    await loop.keep(work)
    async with app.state.database.sessions() as db:
        names = set(
            await db.scalars(text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'"))
        )
    for table, day in old.items():
        assert table.partition(day)[0] not in names
        for kept in (today - timedelta(days=1), today, today + timedelta(days=1)):
            assert table.partition(kept)[0] in names


async def points(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], **params: Any
) -> list[dict[str, Any]]:
    answer = await client.get(f"/v1/{path}/metrics", headers=headers, params=params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["points"]
    return found


async def test_everybody_sees_what_was_measured_of_their_own(
    fleet: Fleet, actors: Actors, app: FastAPI, client: httpx.AsyncClient
) -> None:
    agent = await fleet.host("one", gpus=2)
    ada = await actors.user("ada")
    made = (await fleet.create(ada.headers, gpus=1)).json()
    await agent.obey()
    held = (await fleet.get(ada.headers, made["id"]))["allocated_gpus"][0]["uuid"]
    loads = {one["uuid"]: 80.0 if one["uuid"] == held else 7.0 for one in agent.gpus}
    for sequence in (1, 2):
        beat = await agent.heartbeat(
            sequence=sequence,
            gpus=[
                {"uuid": uuid, "metrics": {"utilization_percent": load, "power_w": 100.0}}
                for uuid, load in loads.items()
            ],
            workloads=[
                {
                    "workload_id": made["id"],
                    "cpu_percent": 150.0,
                    "memory_used_bytes": None,
                    "gpu_memory_bytes": {held: 5 * GIB},
                }
            ],
        )
        assert beat.status_code == 200, beat.text
    mine = await points(client, f"environments/{made['id']}", ada.headers, step_s=86400 * 2)
    found = {(one["of"], one["metric"]): one for one in mine}
    assert {one["gpu_uuid"] for one in mine if one["of"] == "gpu"} == {held}, "not the neighbour's GPU"
    assert (
        found["gpu", "utilization_percent"]["mean"],
        found["gpu", "utilization_percent"]["simulated"],
    ) == (
        80.0,
        True,
    )
    assert found["workload", "gpu_memory_used_bytes"]["last"] == 5 * GIB
    assert ("workload", "memory_used_bytes") not in found, "what nobody measured has no point"

    host = await points(
        client, "hosts/one", fleet.admin, metric=["utilization_percent", "cpu_percent"], step_s=1
    )
    assert {(one["of"], one["metric"]) for one in host} == {
        ("gpu", "utilization_percent"),
        ("host", "cpu_percent"),
    }
    refused = await client.get(f"/v1/gpus/{held}/metrics", headers=ada.headers)
    assert refused.status_code == 403, "how busy a GPU is tells of whoever held it"
    gpu = await points(client, f"gpus/{held}", fleet.admin, metric="power_w", step_s=3600)
    assert [one["mean"] for one in gpu] == [100.0]
    for path in (f"workspaces/{made['workspace_id']}", "customers/default"):
        together = {
            (one["of"], one["metric"]): one["mean"]
            for one in await points(client, path, fleet.admin, step_s=3600)
        }
        assert (together["gpu", "gpus"], together["gpu", "power_w"], together["workload", "cpu_percent"]) == (
            1.0,
            100.0,
            150.0,
        )
    assert (
        await points(
            client, "hosts/one", fleet.admin, **{"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
        )
        == []
    )


async def test_minute_or_hour_in_which_a_gpu_changed_hands_is_nobodys(
    app: FastAPI,
) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    handed_over = hour + timedelta(minutes=60, seconds=5)
    async with app.state.database.sessions() as db:
        for number, percent in enumerate((80.0, 7.0, 9.0)):
            for table, at in (
                (MINUTES, hour + timedelta(minutes=59 + number)),
                (HOURS, hour + timedelta(hours=number)),
            ):
                await samples.make_partition(db, table, at.date())
                await db.execute(
                    text(
                        f"INSERT INTO {table.table} (host_id, at, n, host, gpus, workloads)"  # noqa: S608
                        " VALUES ('host-a', :at, 1, '{}', CAST(:gpus AS jsonb), '{}')"
                    ),
                    {"at": at, "gpus": json.dumps({"GPU-1": {"utilization_percent": percent}})},
                )
        for resolution, step in ((Resolution.MINUTES, 60), (Resolution.HOURS, 3600)):
            window = queries.Window(
                begin=hour,
                end=hour + timedelta(hours=4),
                step=timedelta(seconds=step),
                resolution=resolution,
            )
            for begin, end, expected in (
                (hour, handed_over, [80.0]),
                (handed_over, None, [9.0]),
                (None, None, [80.0, 7.0, 9.0]),
            ):
                span = queries.Span(
                    host_id="host-a", of="gpu", key="GPU-1", simulated=False, begin=begin, end=end
                )
                found = await queries.series(
                    db,
                    spans=[span],
                    window=window,
                    metrics=[],
                    together=False,
                    minutes_until=window.end,
                    hours_until=window.end,
                    most=10,
                )
                assert [one["mean"] for one in found] == expected, (resolution, begin, end)


async def test_numbers_that_no_sum_holds_are_refused_and_the_largest_roll_up(
    fleet: Fleet, app: FastAPI, work: Work
) -> None:
    agent = await fleet.host("one")
    for metrics in ({"ecc_corrected": 10**400}, {"xid": 2**63}, {"power_w": 1e308}, {"remapped_rows": -1}):
        answer = await agent.heartbeat(gpus=[{"uuid": "GPU-one-0", "metrics": metrics}])
        assert answer.status_code == 422, (metrics, answer.text)
    workload = {
        "workload_id": "env-1",
        "cpu_percent": None,
        "memory_used_bytes": None,
        "gpu_memory_bytes": {},
    }
    for more in ({"connections": 10**400}, {"kernel_idle_s": 1e308}):
        assert (await agent.heartbeat(workloads=[workload | more])).status_code == 422
    largest = {"ecc_corrected": 2**62, "power_w": 1e18}
    assert (await agent.heartbeat(gpus=[{"uuid": "GPU-one-0", "metrics": largest}])).status_code == 200
    minute = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=2)
    for second in (1, 11):
        put(app, minute + timedelta(seconds=second), 1.0, gpus={"GPU-1": largest})
    await app.state.database.samples.write()
    await loop.keep(work)
    documented = await documents(app, "host_sample_minutes")
    assert documented[0][2]["gpus"]["GPU-1"]["power_w"] == 1e18


async def test_gpu_that_no_agent_has_is_nowhere_in_the_database(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    one, _ = await fleet.host("one", gpus=2), await fleet.host("two")
    ada = await actors.user("ada")
    key = (await fleet.create(ada.headers, gpus=1)).json()["id"]
    stranger = "GPU-11111111-2222"
    sick = {
        "metrics": {"temperature_c": 130.0, "power_w": 100.0, "ecc_uncorrected": 7},
        "mean": {"power_w": 90.0},
        "unhealthy_reason": "XID 79",
    }
    await one.obey()
    named = ("GPU-one-0", stranger, "GPU-two-0")
    before = REGISTRY.get_sample_value("remotegpu_unknown_gpus_total") or 0.0
    beat = await one.heartbeat(
        gpus=[{"uuid": uuid} | sick for uuid in named],
        workloads=[
            {
                "workload_id": key,
                "cpu_percent": 1.0,
                "memory_used_bytes": 1,
                "gpu_memory_bytes": dict.fromkeys(named, GIB),
                "gpu_utilization_percent": dict.fromkeys(named, 50.0),
            }
        ],
        observed=[
            {"workload_id": key, "generation": 1, "observed": "exited", "gpu_uuids": list(named)},
        ],
    )
    assert beat.status_code == 200, beat.text
    assert REGISTRY.get_sample_value("remotegpu_unknown_gpus_total") == before + 2
    await app.state.database.samples.write()
    async with work.database.sessions() as db:
        assert await work.candidate.acquire(db)
        await db.commit()
    await alerts.LOOP.run(work)

    async with app.state.database.sessions() as db:
        tables = await db.scalars(
            text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        )
        held: dict[str, set[str]] = {uuid: set() for uuid in (*named, "GPU-one-1")}
        for table in tables.all():
            for uuid, where in held.items():
                if await db.scalar(
                    text(f'SELECT EXISTS (SELECT FROM "{table}" r WHERE r::text LIKE :like)'),  # noqa: S608
                    {"like": f"%{uuid}%"},
                ):
                    where.add(re.sub(r"_\d+$", "", table))
        (sample,) = await db.execute(text("SELECT gpus, workloads FROM host_samples"))
    assert held["GPU-one-0"] >= {"gpus", "host_samples", "events"}, "the search finds what is there"
    assert held[stranger] == set()
    assert held["GPU-two-0"] == {"gpus"}, "a host says nothing of another's GPU"
    assert list(sample.gpus) == ["GPU-one-0"]
    assert sample.workloads[key]["gpu_memory_used_bytes"] == GIB


async def test_questions_that_cannot_be_answered_say_what_to_ask_instead(
    fleet: Fleet, client: httpx.AsyncClient
) -> None:
    await fleet.host("one")
    for given, words in (
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "must be before"),
        ({"from": "2020-01-01T00:00:00Z"}, "At most 366 days"),
    ):
        answer = await client.get("/v1/hosts/one/metrics", headers=fleet.admin, params=given)
        assert (answer.status_code, answer.json()["error"]) == (422, "invalid"), answer.text
        assert words in answer.json()["detail"]
    old = {"from": "2026-10-01T00:00:00Z", "step_s": "10"}
    answer = await client.get("/v1/hosts/one/metrics", headers=fleet.admin, params=old)
    assert (answer.json()["step_s"], answer.json()["resolution"]) == (3600, "hours")
