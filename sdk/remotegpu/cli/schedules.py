"""``remotegpu schedule``."""

from __future__ import annotations

import argparse

from pydantic import ValidationError

from remotegpu.cli import output, tasks
from remotegpu.cli.connection import connect
from remotegpu.cli.failures import UsageError
from remotegpu.types.task_schedules import TaskSchedule
from remotegpu.types.tasks import TaskSpec


def create(arguments: argparse.Namespace) -> None:
    """Make one, and say when it comes first."""
    given = tasks.spec(arguments) | tasks.program(arguments)
    if arguments.name is None:
        raise UsageError("Give it a --name; its tasks have it too.")
    if given.pop("depends_on"):
        raise UsageError("A schedule waits for its times, not for other tasks.")
    try:
        task = TaskSpec(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise UsageError(str(error)) from error
    with connect(arguments) as client:
        made = client.task_schedules.create(
            name=arguments.name,
            cron=arguments.cron,
            task=task,
            time_zone=arguments.time_zone,
            overlap="allow" if arguments.allow_overlap else None,
        )
    _say(arguments, made)


def list_(arguments: argparse.Namespace) -> None:
    """Those that the caller may see."""
    with connect(arguments) as client:
        found = list(client.task_schedules.list(owner=arguments.owner))
    output.show_list(arguments, "TaskSchedule", found)


def show(arguments: argparse.Namespace) -> None:
    """When it comes next."""
    with connect(arguments) as client:
        _say(arguments, client.task_schedules.get(arguments.schedule))


def pause(arguments: argparse.Namespace) -> None:
    """Submit nothing more for now."""
    _enable(arguments, False)


def resume(arguments: argparse.Namespace) -> None:
    """Go on."""
    _enable(arguments, True)


def _enable(arguments: argparse.Namespace, enabled: bool) -> None:
    with connect(arguments) as client:
        _say(arguments, client.task_schedules.update(arguments.schedule, enabled=enabled))


def _say(arguments: argparse.Namespace, schedule: TaskSchedule) -> None:
    comes = (
        "is paused" if schedule.next_at is None else f"comes next at {schedule.next_at:%Y-%m-%d %H:%M} UTC"
    )
    failed = f" Its last time failed: {schedule.last_error}" if schedule.last_error else ""
    output.show_item(arguments, schedule, f"Schedule {schedule.id} ({schedule.cron}) {comes}.{failed}")


def delete(arguments: argparse.Namespace) -> None:
    """Forget it."""
    with connect(arguments) as client:
        client.task_schedules.delete(arguments.schedule)
    output.say(arguments, f"Schedule {arguments.schedule} is deleted; its tasks stay.", id=arguments.schedule)
