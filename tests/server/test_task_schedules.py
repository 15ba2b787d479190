"""Schedules: cron expressions over changes of the clock, and the loop with its missed and failed times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hollow_agent import Fleet
from hypothesis import given, strategies

from remotegpu.errors import Invalid
from remotegpu_server.loops import Work
from remotegpu_server.task_schedules import cron, loop
from remotegpu_server.testing import Actors

BERLIN, NEW_YORK, LORD_HOWE = (
    ZoneInfo(name) for name in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
)


def times(expression: str, zone: ZoneInfo, after: datetime, count: int) -> list[str]:
    """The next times, as the clock on the wall shows them."""
    found = []
    parsed, moment = cron.parse(expression), after
    for _ in range(count):
        following = parsed.next_after(moment, zone)
        assert following is not None
        assert following > moment
        moment = following
        found.append(moment.astimezone(zone).strftime("%d.%m. %H:%M%z"))
    return found


def local(zone: ZoneInfo, *when: int) -> datetime:
    return datetime(*when, tzinfo=zone)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 1 * *", ["01.02. 00:00", "01.03. 00:00"]),
        ("*/20 9-10 * * *", ["02.01. 09:00", "02.01. 09:20", "02.01. 09:40", "02.01. 10:00"]),
        ("5,10 0 * * *", ["02.01. 00:05", "02.01. 00:10", "03.01. 00:05"]),
        ("0 12 * * mon-fri", ["01.01. 12:00", "02.01. 12:00", "05.01. 12:00"]),
        ("0 12 * * 0", ["04.01. 12:00", "11.01. 12:00"]),
        ("0 12 * * 7", ["04.01. 12:00"]),
        ("0 0 13 * fri", ["02.01. 00:00", "09.01. 00:00", "13.01. 00:00", "16.01. 00:00"]),
        ("0 0 31 jan,MAR *", ["31.01. 00:00", "31.03. 00:00", "31.01. 00:00"]),
        ("30/15 0 * * *", ["02.01. 00:30", "02.01. 00:45"]),
    ],
)
def test_times_of_an_expression(expression: str, expected: list[str]) -> None:
    after = datetime(2026, 1, 1, 11, 30, tzinfo=UTC)  # a Thursday
    found = times(expression, ZoneInfo("UTC"), after, len(expected))
    assert [one.removesuffix("+0000") for one in found] == expected


def test_star_with_a_step_restricts_no_day_by_itself_so_both_must_fit() -> None:
    after = datetime(2026, 10, 15, tzinfo=UTC)
    assert times("0 0 */10 * fri", ZoneInfo("UTC"), after, 2) == ["11.12. 00:00+0000", "01.01. 00:00+0000"]


def test_leap_day_comes_and_a_day_that_does_not_exist_never_does() -> None:
    found = cron.parse("0 0 29 2 *").next_after(datetime(2097, 1, 1, tzinfo=UTC), ZoneInfo("UTC"))
    assert found == datetime(2104, 2, 29, tzinfo=UTC), "2100 is no leap year"
    assert cron.parse("0 0 31 2 *").next_after(datetime(2026, 1, 1, tzinfo=UTC), ZoneInfo("UTC")) is None


def test_time_that_spring_leaves_out_comes_once_and_an_hour_later_by_the_clock() -> None:
    found = times("30 2 * * *", BERLIN, local(BERLIN, 2026, 3, 28, 0), 3)
    assert found == ["28.03. 02:30+0100", "29.03. 03:30+0200", "30.03. 02:30+0200"]
    both = times("30 2,3 * * *", BERLIN, local(BERLIN, 2026, 3, 29, 0), 2)
    assert both == ["29.03. 03:30+0200", "30.03. 02:30+0200"], "the two fall together"


def test_time_that_autumn_repeats_comes_once() -> None:
    found = times("30 2 * * *", BERLIN, local(BERLIN, 2026, 10, 24, 12), 2)
    assert found == ["25.10. 02:30+0200", "26.10. 02:30+0100"]
    second = local(BERLIN, 2026, 10, 25, 2, 45).astimezone(UTC)
    assert times("30 2 * * *", BERLIN, second, 1) == ["26.10. 02:30+0100"], "not in the repeated hour again"


def test_every_so_often_follows_the_elapsed_time_over_both_changes() -> None:
    spring = times("*/30 * * * *", NEW_YORK, local(NEW_YORK, 2026, 3, 8, 1, 15), 3)
    assert spring == ["08.03. 01:30-0500", "08.03. 03:00-0400", "08.03. 03:30-0400"]
    autumn = times("0 */1 * * *", NEW_YORK, local(NEW_YORK, 2026, 11, 1, 0, 30), 4)
    assert autumn == ["01.11. 01:00-0400", "01.11. 01:00-0500", "01.11. 02:00-0500", "01.11. 03:00-0500"]


def test_half_an_hour_of_summer_time_is_no_problem() -> None:
    found = times("15 2 * * *", LORD_HOWE, local(LORD_HOWE, 2026, 10, 3, 12), 2)
    assert found == ["04.10. 02:45+1100", "05.10. 02:15+1100"]


@given(
    zone=strategies.sampled_from([BERLIN, NEW_YORK, LORD_HOWE, ZoneInfo("Asia/Kolkata")]),
    seconds=strategies.integers(1_704_067_200, 1_893_456_000),
    step=strategies.sampled_from([1, 5, 15, 30]),
)
def test_steady_expression_has_steady_times_whatever_the_clock_does(
    zone: ZoneInfo, seconds: int, step: int
) -> None:
    after = datetime.fromtimestamp(seconds, UTC)
    found = cron.parse(f"*/{step} * * * *").next_after(after, zone)
    assert found is not None
    assert timedelta() < found - after <= timedelta(minutes=step)


@given(
    zone=strategies.sampled_from([BERLIN, NEW_YORK, LORD_HOWE]),
    hour=strategies.integers(0, 23),
    minute=strategies.integers(0, 59),
    year=strategies.integers(2024, 2030),
)
def test_daily_time_comes_exactly_once_on_each_day_of_a_year(
    zone: ZoneInfo, hour: int, minute: int, year: int
) -> None:
    parsed, moment = cron.parse(f"{minute} {hour} * * *"), local(zone, year, 1, 1) - timedelta(seconds=1)
    days = []
    while (following := parsed.next_after(moment, zone)) is not None and following.astimezone(
        zone
    ).year == year:
        days.append(following.astimezone(zone).date())
        moment = following
    assert len(days) == len(set(days)) == (366 if year % 4 == 0 else 365)


@pytest.mark.parametrize(
    "expression",
    [
        "", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *",
        "* * * * 8", "*/0 * * * *", "5-1 * * * *", "a * * * *", "1,, * * * *", "*-5 * * * *", "-1 * * * *",
        "1.5 * * * *", "@daily", "² * * * *", "* * * foo *", "*/999 * * * *", "1-2-3 * * * *",
    ],
)  # fmt: skip
def test_wrong_expression_is_refused(expression: str) -> None:
    with pytest.raises(Invalid):
        cron.parse(expression)


@pytest.mark.parametrize("zone", ["Mars/Base", "../etc/passwd", "/etc/passwd", "Europe", "", "a\x00b"])
def test_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(Invalid):
        cron.zone_of(zone)


async def make(fleet: Fleet, headers: dict[str, str], **changes: Any) -> dict[str, Any]:
    task = {"image": "base", "command": ["x"]} | changes.pop("task", {})
    body = {"name": "nightly", "cron": "30 2 * * *", "task": task} | changes
    answer = await fleet.client.post("/v1/task-schedules", headers=headers, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def sql(app: FastAPI, statement: str) -> Any:
    async with app.state.database.sessions() as db:
        answer = await db.execute(sa.text(statement))
        rows = answer.all() if answer.returns_rows else []
        await db.commit()
        return rows


async def come(app: FastAPI, work: Work) -> None:
    """Its time comes: days late."""
    await sql(app, "UPDATE task_schedules SET next_at = now() - interval '3 days' WHERE enabled")
    for _ in range(2):
        await loop.submit_due(work)


async def test_missed_times_come_as_one_task_of_the_owner(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    made = await make(fleet, ada.headers, task={"labels": {"run": "nightly"}})
    await loop.submit_due(work)
    assert not await sql(app, "SELECT 1 FROM tasks"), "not before its time"
    await come(app, work)
    (task,) = (await fleet.client.get("/v1/tasks", headers=ada.headers)).json()["items"]
    assert (task["schedule_id"], task["owner"], task["status"]) == (made["id"], "ada", "assigned")
    assert task["labels"] == {"run": "nightly"}
    seen = (await fleet.client.get(f"/v1/task-schedules/{made['id']}", headers=ada.headers)).json()
    assert seen["last_error"] is None
    assert seen["last_at"] is not None
    assert datetime.fromisoformat(seen["next_at"]) > datetime.now(UTC)


@pytest.mark.parametrize(("overlap", "tasks"), [("skip", 1), ("allow", 2)])
async def test_overlap_is_skipped_or_allowed(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work, overlap: str, tasks: int
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    await make(fleet, ada.headers, overlap=overlap)
    for _ in range(2):
        await come(app, work)
    assert len(await sql(app, "SELECT 1 FROM tasks")) == tasks
    first = (await sql(app, "SELECT id FROM tasks"))[0].id
    await fleet.client.post(f"/v1/tasks/{first}:stop", headers=ada.headers)
    await come(app, work)
    assert len(await sql(app, "SELECT 1 FROM tasks")) == tasks + 1


async def test_failing_submit_is_written_and_told_once_and_forgotten_after_a_success(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    made = await make(fleet, ada.headers)
    await fleet.client.patch("/v1/images/base", headers=fleet.admin, json={"status": "withdrawn"})
    for _ in range(2):
        await come(app, work)
    path = f"/v1/task-schedules/{made['id']}"
    assert (await fleet.client.get(path, headers=ada.headers)).json()["last_error"]
    told = await sql(app, "SELECT user_id FROM notifications WHERE kind = 'task_schedule.failed'")
    assert [row.user_id for row in told] == [ada.id]
    assert not await sql(app, "SELECT 1 FROM tasks")
    await fleet.client.patch("/v1/images/base", headers=fleet.admin, json={"status": "active"})
    await come(app, work)
    assert (await fleet.client.get(path, headers=ada.headers)).json()["last_error"] is None


async def test_suspended_owner_submits_nothing(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    ada = await actors.user("ada")
    made = await make(fleet, ada.headers)
    await fleet.client.post("/v1/users/ada:suspend", headers=fleet.admin)
    await come(app, work)
    assert not await sql(app, "SELECT 1 FROM tasks")
    seen = await fleet.client.get(f"/v1/task-schedules/{made['id']}", headers=fleet.admin)
    assert "suspended" in seen.json()["last_error"]


async def test_schedule_of_a_deleted_account_ends_at_once_and_once(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    ada = await actors.user("ada")
    made = await make(fleet, ada.headers)
    assert (await fleet.client.delete("/v1/users/ada", headers=fleet.admin)).status_code == 204
    for _ in range(2):
        await loop.submit_due(work)
    seen = (await fleet.client.get(f"/v1/task-schedules/{made['id']}", headers=fleet.admin)).json()
    assert (seen["enabled"], seen["next_at"]) == (False, None)
    assert "deleted" in seen["last_error"]
    said = await sql(app, "SELECT kind FROM events WHERE subject_type = 'task_schedule' ORDER BY id")
    assert [row.kind for row in said] == ["task_schedule.created", "task_schedule.ended"]


async def test_paused_and_deleted_schedules_submit_nothing_and_their_tasks_stay(
    fleet: Fleet, actors: Actors, app: FastAPI, work: Work
) -> None:
    await fleet.host("h1", gpus=1)
    ada = await actors.user("ada")
    made = await make(fleet, ada.headers, overlap="allow")
    path = f"/v1/task-schedules/{made['id']}"
    await come(app, work)
    paused = await fleet.client.patch(path, headers=ada.headers, json={"enabled": False})
    assert (paused.json()["enabled"], paused.json()["next_at"]) == (False, None)
    await come(app, work)
    again = await fleet.client.patch(path, headers=ada.headers, json={"enabled": True, "cron": "0 5 * * *"})
    assert again.json()["next_at"][11:16] == "05:00"
    assert (await fleet.client.delete(path, headers=ada.headers)).status_code == 204
    (task,) = (await fleet.client.get("/v1/tasks", headers=ada.headers)).json()["items"]
    assert task["schedule_id"] is None


async def test_what_runs_is_its_owners_to_change(fleet: Fleet, actors: Actors) -> None:
    """It runs as the owner: whoever could change the task could act as somebody else."""
    ada = await actors.user("ada")
    made = await make(fleet, ada.headers)
    path = f"/v1/task-schedules/{made['id']}"
    other = {"task": {"image": "base", "command": ["steal"]}}
    refused = await fleet.client.patch(path, headers=fleet.admin, json=other)
    assert refused.status_code == 403
    assert (await fleet.client.patch(path, headers=fleet.admin, json={"enabled": False})).status_code == 200
    changed = await fleet.client.patch(path, headers=ada.headers, json=other)
    assert changed.json()["task"]["command"] == ["steal"]


@pytest.mark.parametrize(
    "changes",
    [
        {"cron": "61 * * * *"},
        {"cron": "0 0 31 2 *", "enabled": False},
        {"time_zone": "Mars/Base"},
        {"overlap": "queue"},
        {"task": {"script": "both"}},
        {"task": {"start_at": "2099-01-01T00:00:00Z"}},
        {"task": {"image": "none"}},
    ],
)
async def test_what_could_never_be_submitted_is_refused_at_once(
    fleet: Fleet, actors: Actors, changes: dict[str, Any]
) -> None:
    ada = await actors.user("ada")
    body: dict[str, Any] = {"name": "nightly", "cron": "30 2 * * *"} | changes
    body["task"] = {"image": "base", "command": ["x"]} | changes.get("task", {})
    answer = await fleet.client.post("/v1/task-schedules", headers=ada.headers, json=body)
    assert answer.status_code in (404, 422), answer.text


async def test_name_is_taken_once_per_owner(fleet: Fleet, actors: Actors) -> None:
    ada, bob = await actors.user("ada"), await actors.user("bob")
    for person in (ada, bob):
        await make(fleet, person.headers)
    body = {"name": "nightly", "cron": "30 2 * * *", "task": {"image": "base", "command": ["x"]}}
    again = await fleet.client.post("/v1/task-schedules", headers=ada.headers, json=body)
    assert (again.status_code, again.json()["error"]) == (409, "name_taken")
