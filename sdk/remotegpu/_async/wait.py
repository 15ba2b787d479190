"""Looking again and again until something got where it should, at a pace that spares the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from remotegpu import _progress
from remotegpu._async.stream import TRANSIENT
from remotegpu._tail import Tail
from remotegpu.errors import WaitFailed, WaitTimeout
from remotegpu.types.environments import Environment, EnvironmentLogs, EnvironmentStatus
from remotegpu.types.hosts import Host
from remotegpu.types.tasks import Task, TaskStatus
from remotegpu.types.wire import Wire

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 2.0
PAUSE_GROWTH = 1.3
FOLLOW_PAUSE_S = 2.0
FOLLOWED_LINES = 1000

WaitedT = TypeVar("WaitedT", bound=Wire)
TASK_ENDED = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMED_OUT})
ENDED = frozenset({EnvironmentStatus.STOPPED, EnvironmentStatus.FAILED, EnvironmentStatus.DELETED})


async def until_ready(
    get: Callable[[str], Awaitable[Environment]],
    environment_id: str,
    *,
    timeout_s: float,
    progress: _progress.Choice[Environment],
) -> Environment:
    """The environment once it runs."""
    goal = ENDED | {EnvironmentStatus.RUNNING}
    with _progress.display(progress) as show:
        environment = await _until(
            get, environment_id, lambda found: found.status in goal, show, timeout_s=timeout_s
        )
    if environment.status in ENDED:
        raise WaitFailed(_why(environment), reason=str(environment.reason), log_tail=environment.log_tail)
    return environment


async def until_stopped(
    get: Callable[[str], Awaitable[Environment]],
    environment_id: str,
    *,
    timeout_s: float,
    progress: _progress.Choice[Environment],
) -> Environment:
    """The environment once it runs no more."""
    with _progress.display(progress) as show:
        return await _until(
            get, environment_id, lambda found: found.status in ENDED, show, timeout_s=timeout_s
        )


async def until_host_ready(
    get: Callable[[str], Awaitable[Host]], host: str, *, timeout_s: float, progress: _progress.Choice[Host]
) -> Host:
    """The host once it takes new work."""
    with _progress.display(progress) as show:
        return await _until(get, host, lambda found: found.ready, show, timeout_s=timeout_s)


async def until_ended(
    get: Callable[[str], Awaitable[Task]], task_id: str, *, timeout_s: float, progress: _progress.Choice[Task]
) -> Task:
    """The task once it has ended."""
    with _progress.display(progress) as show:
        return await _until(get, task_id, lambda found: found.status in TASK_ENDED, show, timeout_s=timeout_s)


def task_failed(task: Task, *, log_tail: str) -> WaitFailed:
    """The error for a task that ended otherwise than with success."""
    text = f"Task {task.name} is {task.status} ({task.reason}): {task.message}"
    tail = log_tail.rstrip()
    if tail:
        text += f"\nIts last output:\n{tail}"
    return WaitFailed(text, reason=str(task.reason), log_tail=log_tail)


async def _until(
    get: Callable[[str], Awaitable[WaitedT]],
    what: str,
    arrived: Callable[[WaitedT], bool],
    show: _progress.Show[WaitedT],
    *,
    timeout_s: float,
) -> WaitedT:
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    last = "the server gave no answer"
    while True:
        try:
            found = await get(what)
        except TRANSIENT as error:
            last = str(error)  # a server that restarts is no reason to stop waiting
        else:
            show(found)
            if arrived(found):
                return found
            last = _progress.describe(found)
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise WaitTimeout(f"Not within {timeout_s:g} s, and it goes on; last seen: {last}")
        await asyncio.sleep(min(pause_s, remaining_s))
        pause_s = min(pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)


def _why(environment: Environment) -> str:
    said = f"Environment {environment.name} is {environment.status} ({environment.reason})"
    text = f"{said}: {environment.message}" if environment.message else f"{said}."
    tail = (environment.log_tail or "").rstrip()
    return f"{text}\nIts last output:\n{tail}" if tail else text


async def output(
    get: Callable[[str], Awaitable[Environment]],
    logs: Callable[[str, int], Awaitable[EnvironmentLogs]],
    environment_id: str,
    *,
    tail_lines: int,
    give_up_after_s: float,
) -> AsyncGenerator[str, None]:
    """What a container writes, piece by piece, until it runs no more."""
    tail = Tail()
    lines = tail_lines
    silent_since: float | None = None
    while True:
        try:
            environment = await get(environment_id)  # before its output: what it wrote last is still fetched
            found = await logs(environment_id, lines)
        except TRANSIENT:
            silent_since = time.monotonic() if silent_since is None else silent_since
            if time.monotonic() - silent_since >= give_up_after_s:
                raise
        else:
            silent_since = None
            if found.live or environment.status in ENDED:  # else it is what an earlier start left
                new = tail.added(found.text)
                lines = max(tail_lines, FOLLOWED_LINES)
                if new:
                    yield new
            if environment.status in ENDED:
                return
        await asyncio.sleep(FOLLOW_PAUSE_S)
