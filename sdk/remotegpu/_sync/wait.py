# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Following an environment until it got where it should. Many requests, at a pace that spares the server."""

from __future__ import annotations

import time
from collections.abc import Callable

from remotegpu import _progress
from remotegpu.errors import (
    ConnectionFailed,
    RateLimited,
    RequestTimeout,
    Unavailable,
    WaitFailed,
    WaitTimeout,
)
from remotegpu.types.environments import Environment, EnvironmentStatus

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 2.0
PAUSE_GROWTH = 1.3

Get = Callable[[str], Environment]
ENDED = frozenset({EnvironmentStatus.STOPPED, EnvironmentStatus.FAILED, EnvironmentStatus.DELETED})


def until_ready(
    get: Get, environment_id: str, *, timeout_s: float, progress: _progress.Choice
) -> Environment:
    """The environment once it runs."""
    goal = frozenset({EnvironmentStatus.RUNNING})
    environment = _until(get, environment_id, goal | ENDED, timeout_s=timeout_s, progress=progress)
    if environment.status in ENDED:
        raise WaitFailed(_why(environment), reason=str(environment.reason), log_tail=environment.log_tail)
    return environment


def until_stopped(
    get: Get, environment_id: str, *, timeout_s: float, progress: _progress.Choice
) -> Environment:
    """The environment once it runs no more."""
    return _until(get, environment_id, ENDED, timeout_s=timeout_s, progress=progress)


def _until(
    get: Get,
    environment_id: str,
    goal: frozenset[EnvironmentStatus],
    *,
    timeout_s: float,
    progress: _progress.Choice,
) -> Environment:
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    last = "the server gave no answer"
    with _progress.display(progress) as show:
        while True:
            try:
                environment = get(environment_id)
            except (ConnectionFailed, RequestTimeout, Unavailable, RateLimited) as error:
                last = str(error)  # a server that restarts is no reason to stop waiting
            else:
                show(environment)
                if environment.status in goal:
                    return environment
                last = f"{environment.status}: {environment.message}"
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise WaitTimeout(f"Not within {timeout_s:g} s; last seen: {last}")
            time.sleep(min(pause_s, remaining_s))
            pause_s = min(pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)


def _why(environment: Environment) -> str:
    said = f"Environment {environment.name} is {environment.status} ({environment.reason})"
    text = f"{said}: {environment.message}" if environment.message else f"{said}."
    tail = (environment.log_tail or "").rstrip()
    return f"{text}\nIts last output:\n{tail}" if tail else text
