"""Stops that are not lost: neither with a cancelled start nor while the server is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from remotegpu import AsyncClient, errors
from remotegpu.types.environments import Environment
from remotegpu_spawner.launch import LIVE, PACE_STARTING_S

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
ATTEMPTS = 60
"""About 55 minutes."""

_background: set[asyncio.Task[None]] = set()
"""Held here, because the hub drops a stopped spawner and asyncio a task that nobody holds."""

Find = Callable[[], Coroutine[Any, Any, Environment | None]]


async def until_gone(client: AsyncClient, environment_id: str, *, timeout_s: float, log: Any) -> bool:
    """Whether it ended within the time. An unanswered question counts as not yet."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if (await client.environments.get(environment_id)).status not in LIVE:
                return True
        except errors.NotFound:
            return True
        except errors.RemoteGPUError as error:
            log.debug("asked again until the time is over: %s", error)
        await asyncio.sleep(PACE_STARTING_S)
    return False


def later(
    client: AsyncClient, find: Find, *, generation: int | None, still_wanted: Callable[[], bool], log: Any
) -> None:
    """Stop what `find` finds in the background, until the server has taken it or somebody wants it again.

    With a `generation`, another start than that one is left alone.
    """
    task = asyncio.create_task(
        _repeat(client, find, generation=generation, still_wanted=still_wanted, log=log)
    )
    _background.add(task)
    task.add_done_callback(_background.discard)


async def _repeat(
    client: AsyncClient, find: Find, *, generation: int | None, still_wanted: Callable[[], bool], log: Any
) -> None:
    pause_s = FIRST_PAUSE_S
    for _ in range(ATTEMPTS):
        await asyncio.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        if not still_wanted():
            return
        try:
            environment = await find()
            if environment is None or environment.status not in LIVE:
                return
            if generation is None or environment.generation == generation:
                await client.environments.stop(environment.id)
            return
        except errors.RemoteGPUError as error:
            log.warning("a stop could not be delivered yet: %s", error)
    log.error("a stop was given up; stop the environment by hand: `remotegpu env list` shows it")


def when_it_turns_up(task: asyncio.Task[Environment], then: Callable[[Environment], None]) -> None:
    """Call `then` with the environment of a request that nobody waits for any more."""

    def done(finished: asyncio.Task[Environment]) -> None:
        if not finished.cancelled() and finished.exception() is None:
            then(finished.result())

    task.add_done_callback(done)
