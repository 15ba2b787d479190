"""From a request to an address: create or start the environment, and follow it until it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from remotegpu import AsyncClient, errors
from remotegpu.types.environments import Environment, EnvironmentStatus
from remotegpu_spawner.errors import SpawnRefused, failed
from remotegpu_spawner.options import Options
from remotegpu_spawner.progress import likely

LIVE = frozenset(
    {
        EnvironmentStatus.PENDING,
        EnvironmentStatus.STARTING,
        EnvironmentStatus.RUNNING,
        EnvironmentStatus.STOPPING,
        EnvironmentStatus.UNREACHABLE,
        EnvironmentStatus.UNKNOWN,
    }
)
"""Statuses in which the hub must believe that the server runs."""

SILENT = (errors.ClientError, errors.ServerError, errors.Unavailable, errors.RateLimited)
"""Errors that say nothing about the environment: the server is away, or busy."""

PACE_STARTING_S = 0.15
PACE_WAITING_S = 1.0

Request = Coroutine[Any, Any, Environment]


class Overtaken(Exception):
    """The user asks for something else in the place of a request that waits."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment.id)
        self.environment = environment


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of one hub server."""

    client: AsyncClient
    name: str
    display_name: str
    wanted: Options
    secret_env: dict[str, str]
    note: Callable[[Environment], None]
    """Called with each state that is seen, for the progress page."""
    send: Callable[[Request], Coroutine[Any, Any, Environment]]
    """Awaits a request that must not be torn in two by a cancelled start."""
    queue_wait_s: float
    silence_limit_s: float
    keep_for: tuple[str, str] | None
    """The hub's user and server whose place is kept when the wait is over; ``None``: it is given up."""
    end_wait_s: float
    """How long an earlier start may take to end."""
    overtaken: Callable[[], bool] = lambda: False
    """Whether the user asks for something else in this request's place."""

    async def begin(self, existing: Environment | None) -> Environment:
        """Create the environment, or start the one that there is."""
        if existing is None:
            return await self.send(
                self.client.environments.create(
                    name=self.name,
                    display_name=self.display_name,
                    secret_env=self.secret_env,
                    **self.wanted.spec(),
                )
            )
        self._refuse_another_workspace(existing)
        if kept(existing):
            return await self._start_again(existing.id)
        if existing.status in LIVE:
            # It carries the hub token of an earlier start, which this one has replaced: nobody could get in.
            self.note(existing)
            await self.client.environments.stop(existing.id)
        return await self._start_again(existing.id)

    async def _start_again(self, environment_id: str) -> Environment:
        """Start it as soon as the last start is proven gone; until then the server answers a conflict."""
        deadline = time.monotonic() + self.end_wait_s
        while True:
            try:
                return await self.send(
                    self.client.environments.start(
                        environment_id, secret_env=self.secret_env, **self.wanted.start()
                    )
                )
            except errors.StateConflict as error:
                if time.monotonic() > deadline:
                    raise SpawnRefused(
                        f"{error.detail} Its host has not confirmed the end yet, and its GPUs cannot be "
                        "given out before. Try again in a minute; if it stays so, ask your administrator.",
                        reason="stopping",
                        status_code=409,
                    ) from error
            await asyncio.sleep(PACE_STARTING_S)

    def _refuse_another_workspace(self, existing: Environment) -> None:
        if self.wanted.workspace not in ("", existing.workspace_id):
            raise SpawnRefused(
                "This server lives in another workspace and stays there. Make a new server for the workspace "
                "that you chose, or delete this one first; your home stays.",
                reason="workspace",
                status_code=409,
            )

    async def follow(self, environment: Environment) -> str:
        """The address, once the notebook server answers.

        :raises SpawnRefused: it never will.
        :raises Overtaken: it still waits, and the user asks for something else.
        """
        queued_since = heard = time.monotonic()
        generation = environment.generation
        while True:
            self.note(environment)
            if environment.generation != generation:
                raise SpawnRefused(
                    "The server was started again from elsewhere.", reason="superseded", status_code=409
                )
            if environment.status is EnvironmentStatus.RUNNING and environment.address:
                return environment.address
            _refuse_if_over(environment)
            waiting = environment.status is EnvironmentStatus.PENDING
            if waiting and self.overtaken():
                raise Overtaken(environment)
            if waiting and time.monotonic() - queued_since > self.queue_wait_s:
                raise await self._give_way(environment)
            await asyncio.sleep(PACE_WAITING_S if waiting else PACE_STARTING_S)
            try:
                environment = await self.client.environments.get(environment.id)
                heard = time.monotonic()
            except SILENT:
                # The server restarts; the environment goes on starting meanwhile.
                if time.monotonic() - heard > self.silence_limit_s:
                    raise

    async def _give_way(self, environment: Environment) -> SpawnRefused:
        """Stop waiting: keep the place where the server can have the hub start it later, else give it up."""
        if self.keep_for is not None:
            user, server = self.keep_for
            try:
                environment = await self.client.environments.keep_place(
                    environment.id, hub_user=user, hub_server=server
                )
            except errors.Conflict:
                pass  # this server does not know the hub's API, or it got its host a moment ago
            else:
                self.note(environment)
                return place_is_kept(environment)
        await self.client.environments.stop(environment.id)
        return _nothing_free(environment, self.queue_wait_s)


def kept(environment: Environment) -> bool:
    """Whether its place is kept: it waits, and no start of the hub does."""
    return (
        environment.status is EnvironmentStatus.PENDING
        and environment.wait is not None
        and environment.wait.place_kept
    )


def place_is_kept(environment: Environment) -> SpawnRefused:
    """The end of a start that goes on without anybody waiting."""
    position = f"position {environment.queue_position}" if environment.queue_position else "in the queue"
    when = f", {likely(environment)}" if likely(environment) else ""
    return SpawnRefused(
        f"Your place is kept: {position}{when}. The server starts by itself when its turn comes; you need "
        f"not wait here. {environment.message}",
        reason="kept",
        status_code=503,
    )


def _refuse_if_over(environment: Environment) -> None:
    if environment.status is EnvironmentStatus.FAILED:
        raise failed(environment)
    if environment.status in (
        EnvironmentStatus.STOPPING,
        EnvironmentStatus.STOPPED,
        EnvironmentStatus.DELETED,
    ):
        raise SpawnRefused("The server was stopped while it started.", reason="stopped", status_code=409)


def _nothing_free(environment: Environment, waited_s: float) -> SpawnRefused:
    waited = f"{waited_s / 60:.0f} minutes" if waited_s >= 90 else f"{waited_s:.0f} seconds"
    return SpawnRefused(
        f"Nothing became free within {waited}: {environment.message} "
        "Try again later, or ask for fewer or other GPUs.",
        reason="capacity",
        status_code=503,
    )


async def until_answering(client: AsyncClient, environment: Environment, *, timeout_s: float) -> Environment:
    """The environment when it runs or has ended, or as it is when the time is over."""
    deadline = time.monotonic() + timeout_s
    undecided = LIVE - {EnvironmentStatus.RUNNING}
    while environment.status in undecided and time.monotonic() < deadline:
        await asyncio.sleep(PACE_WAITING_S)
        try:
            environment = await client.environments.get(environment.id)
        except SILENT:
            continue
    return environment
