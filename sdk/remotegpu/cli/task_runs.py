"""``remotegpu run`` and ``remotegpu task logs``: a task's output as it comes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator
from contextlib import closing

import remotegpu
from remotegpu._remote.answers import Output
from remotegpu.cli import output
from remotegpu.cli.connection import connect
from remotegpu.cli.failures import INTERRUPTED, REFUSED
from remotegpu.cli.tasks import find, sent, spec
from remotegpu.types.tasks import Task

PART_BYTES = 2**20


def logs(arguments: argparse.Namespace) -> None:
    """Its output so far, or with ``-f`` until it has ended."""
    with connect(arguments) as client:
        task = find(client, arguments.task)
        if arguments.follow:
            pieces = client.tasks.follow_logs(
                task.id, attempt=arguments.attempt, rank=arguments.rank, tail_bytes=arguments.tail
            )
        else:
            pieces = _so_far(
                client, task.id, attempt=arguments.attempt, rank=arguments.rank, tail_bytes=arguments.tail
            )
        with closing(pieces):
            output.stream_text(arguments, _readable(pieces))


def _readable(pieces: Iterator[str]) -> Iterator[str]:
    """Without the lines in which the result of a function comes back."""
    shown = Output()
    for piece in pieces:
        if text := shown.shown(piece):
            yield text
    if rest := shown.rest():
        yield rest


def _so_far(
    client: remotegpu.Client, task_id: str, *, attempt: int | None, rank: int, tail_bytes: int | None
) -> Generator[str, None, None]:
    part = client.tasks.logs(task_id, attempt=attempt, rank=rank, tail_bytes=tail_bytes, limit=PART_BYTES)
    while part.next_offset > part.offset:
        yield part.text
        part = client.tasks.logs(
            task_id, attempt=part.attempt, rank=rank, offset=part.next_offset, limit=PART_BYTES
        )


def run(arguments: argparse.Namespace) -> None:
    """Submit, follow, and exit with the code of the command."""
    with connect(arguments) as client:
        file = sent(client, arguments.input)
        (task,) = client.tasks.submit(**spec(arguments), command=arguments.command, input_sha256=file).tasks
        if arguments.detach:
            output.show_item(arguments, task, task.id)
            return
        print(f"remotegpu: task {task.id} is {task.status}. {task.message}".rstrip(), file=sys.stderr)
        if not _followed(client, arguments, task.id):
            sys.exit(INTERRUPTED)
        # What was printed last may be ahead of the status; this is over in a moment.
        ended = client.tasks.wait(task.id, progress=False)
    if arguments.json:
        output.show_line(ended)
    sys.exit(_exit_code(ended))


def _followed(client: remotegpu.Client, arguments: argparse.Namespace, task_id: str) -> bool:
    """Print its output to the end; False when it was left running."""
    seen = 0

    def pieces() -> Iterator[str]:
        nonlocal seen
        with closing(client.tasks.follow_logs(task_id)) as found:
            skipped = 0
            for piece in found:
                skipped += len(piece)
                if skipped > seen:
                    new = piece[len(piece) - (skipped - seen) :]
                    seen = skipped
                    yield new

    while True:
        try:
            output.stream_text(arguments, pieces())
            return True
        except KeyboardInterrupt:
            if not _stop_wanted():
                print(
                    f"remotegpu: task {task_id} goes on. `remotegpu task logs -f {task_id}` follows it, "
                    f"`remotegpu task stop {task_id}` ends it.",
                    file=sys.stderr,
                )
                return False
            client.tasks.stop(task_id)
            print("remotegpu: stopping it", file=sys.stderr)


def _stop_wanted() -> bool:
    """Ask whoever pressed Ctrl-C; without a terminal nobody can answer, and nothing is stopped."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print("\nStop the task, or leave it running? [s]top / [L]eave: ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return False
    return answer.strip().lower() in {"s", "stop"}


def _exit_code(task: Task) -> int:
    """The command's own where it has one; what ended otherwise says so."""
    if task.status != "succeeded":
        print(f"remotegpu: {task.name} is {task.status} ({task.reason}). {task.message}", file=sys.stderr)
    if task.exit_code is not None and (task.exit_code != 0 or task.status == "succeeded"):
        return task.exit_code
    return 0 if task.status == "succeeded" else REFUSED
