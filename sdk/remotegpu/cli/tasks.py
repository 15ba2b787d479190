"""``remotegpu task``."""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import remotegpu
from remotegpu.cli import output
from remotegpu.cli.connection import connect
from remotegpu.cli.environments import sizes
from remotegpu.cli.failures import UsageError
from remotegpu.types.tasks import Dependency, DependencyCondition, Task, TaskArray

_FACTS = (
    "id", "owner", "image", "progress", "exit_code", "attempt", "queue_position", "gpus", "cpus",
    "memory_bytes", "nodes", "created_at", "started_at", "finished_at", "deadline_at",
)  # fmt: skip


def submit(arguments: argparse.Namespace) -> None:
    """Submit a task or an array, and say its id."""
    if arguments.max_parallel is not None and arguments.array is None:
        raise UsageError("--max-parallel belongs to --array.")
    array = None
    if arguments.array is not None:
        array = TaskArray(size=arguments.array, max_parallel=arguments.max_parallel)
    what = program(arguments)
    with connect(arguments) as client:
        made = client.tasks.submit(
            **spec(arguments), **what, array=array, input_sha256=sent(client, arguments.input)
        )
    if made.array_id is not None:
        sentence = f"Array {made.array_id} of {made.count} tasks is submitted."
    else:
        (task,) = made.tasks
        sentence = f"Task {task.id} is {task.status}. {task.message}".rstrip()
    output.show_item(arguments, made, sentence)


def program(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command, or the text of the script."""
    if bool(arguments.command) == bool(arguments.script):
        raise UsageError("Give a command after --, or a script with --script.")
    return {"script": _script(arguments.script)} if arguments.script else {"command": arguments.command}


def _script(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the script {file}: {error}") from error


def sent(client: remotegpu.Client, file: str | None) -> str | None:
    """Checksum of the file that the task reads, once the server has it."""
    if file is None:
        return None
    try:
        return client.task_inputs.upload(file).sha256
    except OSError as error:
        raise UsageError(f"Cannot read the input {file}: {error.strerror}.") from error


def spec(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options of a task say; ``None`` where one was left out."""
    depends_on = [
        Dependency(task_id=task_id, condition=condition)
        for condition, given in (
            (DependencyCondition.AFTER_OK, arguments.after),
            (DependencyCondition.AFTER_ANY, arguments.after_any),
        )
        for task_id in given
    ]
    return sizes(arguments) | {
        "image": arguments.image,
        "name": arguments.name,
        "env": dict(arguments.env) or None,
        "working_dir": arguments.working_dir,
        "nodes": arguments.nodes,
        "labels": dict(arguments.label) if arguments.label else None,
        "workspace": arguments.workspace,
        "reservation": arguments.reservation,
        "priority": arguments.priority,
        "preemptible": arguments.preemptible,
        "min_run_s": arguments.min_run,
        "start_at": arguments.start_at,
        "timeout_s": arguments.timeout,
        "stop_grace_s": arguments.stop_grace,
        "max_retries": arguments.max_retries,
        "retry_on": arguments.retry_on,
        "depends_on": depends_on or None,
    }


def list_(arguments: argparse.Namespace) -> None:
    """The tasks that the caller may see, at most ``--limit`` of them: there may be very many."""
    with connect(arguments) as client:
        found = client.tasks.list(
            owner=arguments.owner,
            name=arguments.name,
            array=arguments.array,
            labels=arguments.label,
            status=arguments.status,
            limit=min(arguments.limit, 100),
        )
        output.show_list(arguments, "Task", list(islice(found, arguments.limit)))


def show(arguments: argparse.Namespace) -> None:
    """Everything about one task."""
    with connect(arguments) as client:
        task = find(client, arguments.task)
    lines = [f"{task.name}: {task.status} ({task.reason})", *filter(None, [task.message])]
    lines += [f"{name}: {value}" for name in _FACTS if (value := getattr(task, name)) is not None]
    if task.progress_message:
        lines.append(f"progress_message: {task.progress_message}")
    lines += [
        f"host: {host.host_name}" if task.nodes == 1 else f"rank {host.rank}: {host.host_name}"
        for host in task.hosts
    ]
    output.show_item(arguments, task, "\n".join(lines))


def attempts(arguments: argparse.Namespace) -> None:
    """Its tries."""
    with connect(arguments) as client:
        output.show_list(arguments, "TaskAttempt", client.tasks.attempts(find(client, arguments.task).id))


def stop(arguments: argparse.Namespace) -> None:
    """Ask for its stop."""
    with connect(arguments) as client:
        task = client.tasks.stop(find(client, arguments.task).id)
    stopping = task.stop_requested and task.finished_at is None
    output.show_item(arguments, task, f"{task.name} is {'stopping' if stopping else task.status}.")


def retry(arguments: argparse.Namespace) -> None:
    """Run it once more."""
    with connect(arguments) as client:
        task = client.tasks.retry(find(client, arguments.task).id)
    output.show_item(arguments, task, f"{task.name} is {task.status}. {task.message}".rstrip())


def copy(arguments: argparse.Namespace) -> None:
    """Fetch one file of its outputs, or all of them into the folders that they lay in."""
    task_id, _, path = arguments.source.partition(":")
    with connect(arguments) as client:
        task = find(client, task_id)
        left = list(
            client.tasks.artifacts(
                task.id, attempt=task.attempt or None, rank=arguments.rank, path=path or None
            )
        )
        if path and not left:
            raise remotegpu.NotFound(f"{task.name} left no file {path}.", hint="Without a path all come.")
        apart = task.nodes > 1 and arguments.rank is None  # each may have left files of the same names
        fetched = [
            client.tasks.download_artifact(
                file, arguments.target if path and not apart else _below(Path(arguments.target), name)
            )
            for file in left
            if (name := f"rank-{file.rank}/{file.path}" if apart else file.path)
        ]
    names = [str(one) for one in fetched]
    output.say(arguments, "\n".join(names) or f"{task.name} left no files.", files=names)


def _below(folder: Path, path: str) -> Path:
    """Where a file goes; the path was chosen by a task, and must not leave the folder."""
    target = (folder / path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UsageError(f"{path} would lie outside of {folder}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def find(client: remotegpu.Client, task_id: str) -> Task:
    """The task with this id."""
    try:
        return client.tasks.get(task_id)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except remotegpu.NotFound as error:
        raise remotegpu.NotFound(
            f"There is no task {task_id}.",
            hint="`remotegpu task list` shows yours.",
            request_id=error.request_id,
        ) from error
