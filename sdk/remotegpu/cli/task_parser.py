"""Commands of tasks, and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction  # argparse has no public name for it
    Add = Callable[[Commands[argparse.ArgumentParser], str, str, str], argparse.ArgumentParser]
    Group = Callable[[Commands[argparse.ArgumentParser], str, str], Commands[argparse.ArgumentParser]]
    Options = Callable[[argparse.ArgumentParser], None]

_STATUSES = ("pending", "assigned", "running", "succeeded", "failed", "cancelled", "timed_out")
_RETRY_ON = ("lost", "failed", "timed_out")


def add_commands(
    commands: Commands[argparse.ArgumentParser],
    add: Add,
    group: Group,
    *,
    needs: Options,
    pair: Callable[[str], tuple[str, str]],
) -> None:
    """Everything of this module; ``needs`` adds the options of GPUs, memory and queue."""
    task = group(commands, "task", "tasks: commands that run to their end on a host")
    submit = add(task, "submit", "tasks.submit", "submit a command or a script, or an array of them")
    _spec_options(submit, needs, pair)
    _input_option(submit)
    submit.add_argument("--script", metavar="FILE", help="instead of a command; - for standard input")
    submit.add_argument("--array", type=int, metavar="N", help="the same N times; each is told its number")
    submit.add_argument("--max-parallel", type=int, metavar="N", help="of an array at a time")
    submit.add_argument("command", nargs="*", metavar="-- CMD ARGUMENT", help="what to run")

    run = add(commands, "run", "task_runs.run", "submit a command, follow it, and exit with its code")
    _spec_options(run, needs, pair)
    _input_option(run)
    run.add_argument("--detach", "-d", action="store_true", help="print the id and leave it running")
    run.add_argument("command", nargs="+", metavar="-- CMD ARGUMENT", help="what to run")

    logs = add(task, "logs", "task_runs.logs", "print its output")
    logs.add_argument("task", metavar="ID")
    logs.add_argument("--tail", type=int, metavar="BYTES", help="only the newest; left out: all of it")
    logs.add_argument("--attempt", type=int, metavar="N", help="left out: the newest")
    logs.add_argument("--rank", type=int, default=0, metavar="N", help="of several hosts; default: 0")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until it has ended")

    cp = add(task, "cp", "tasks.copy", "fetch what it left in /output")
    cp.add_argument("source", metavar="ID[:PATH]", help="without a path: all files of its newest attempt")
    cp.add_argument(
        "--rank", type=int, metavar="N", help="of several hosts; left out: all, in rank-N folders"
    )
    cp.add_argument(
        "target", nargs="?", default=".", help="a folder, or the name of the one file (default: .)"
    )

    list_ = add(task, "list", "tasks.list_", "list tasks, the newest first")
    list_.add_argument("--owner", help="user name (admins and owners)")
    list_.add_argument("--status", action="append", choices=_STATUSES, help="repeatable")
    list_.add_argument("--name")
    list_.add_argument("--array", metavar="ID", help="only those of this array")
    list_.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="repeatable")
    list_.add_argument("--limit", type=int, default=100, metavar="N", help="default: %(default)s")
    for verb, what in (
        ("show", "everything about one task"),
        ("attempts", "its tries, the newest first"),
        ("stop", "TERM, then KILL after its grace"),
        ("retry", "run one again that failed, was cancelled or timed out"),
    ):
        add(task, verb, f"tasks.{verb}", what).add_argument("task", metavar="ID")

    _schedule_commands(commands, add, group, needs, pair)


def _input_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", metavar="FILE", help="sent before; the command finds it where $REMOTEGPU_INPUT says"
    )


def _schedule_commands(
    commands: Commands[argparse.ArgumentParser],
    add: Add,
    group: Group,
    needs: Options,
    pair: Callable[[str], tuple[str, str]],
) -> None:
    schedule = group(commands, "schedule", "tasks that are submitted regularly")
    create = add(schedule, "create", "schedules.create", "submit a command at the times of a cron expression")
    create.add_argument("--cron", required=True, metavar="EXPRESSION", help="such as '30 2 * * mon-fri'")
    create.add_argument("--time-zone", metavar="ZONE", help="such as Europe/Berlin; left out: UTC")
    create.add_argument(
        "--allow-overlap", action="store_true", help="submit also while the last task has not ended"
    )
    _spec_options(create, needs, pair)
    create.add_argument("--script", metavar="FILE", help="instead of a command; - for standard input")
    create.add_argument("command", nargs="*", metavar="-- CMD ARGUMENT", help="what to run")
    list_ = add(schedule, "list", "schedules.list_", "list schedules, the newest first")
    list_.add_argument("--owner", help="user name (admins and owners)")
    for verb, what in (
        ("show", "when it comes next, and how it went last"),
        ("pause", "submit nothing until it is resumed"),
        ("resume", "submit again, from the next time on"),
        ("delete", "forget it; its tasks stay"),
    ):
        add(schedule, verb, f"schedules.{verb}", what).add_argument("schedule", metavar="ID")


def _spec_options(
    parser: argparse.ArgumentParser, needs: Options, pair: Callable[[str], tuple[str, str]]
) -> None:
    parser.add_argument("--image", required=True, help="a name from `remotegpu image list`")
    parser.add_argument("--name", help="for people; need not be unique")
    needs(parser)
    parser.add_argument("--working-dir", metavar="PATH", help="left out: the home")
    parser.add_argument("--nodes", type=int, metavar="N", help="hosts at once, all or nothing")
    parser.add_argument("--label", type=pair, action="append", metavar="KEY=VALUE", help="repeatable")
    parser.add_argument("--workspace", metavar="ID", help="left out: the personal one")
    parser.add_argument("--reservation", metavar="ID")
    parser.add_argument("--timeout", type=float, metavar="S", help="end it so long after its start")
    parser.add_argument("--stop-grace", type=float, metavar="S", help="between TERM and KILL")
    parser.add_argument("--max-retries", type=int, metavar="N")
    parser.add_argument("--retry-on", action="append", choices=_RETRY_ON, help="repeatable; usual: lost")
    parser.add_argument(
        "--after", action="append", default=[], metavar="ID", help="once this task succeeded; repeatable"
    )
    parser.add_argument(
        "--after-any", action="append", default=[], metavar="ID", help="once this task ended; repeatable"
    )
