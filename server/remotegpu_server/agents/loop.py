"""The fallback of the long polls: one query for every host that waits in this process.

Hints wake a poll at once; this pass finds what a lost hint would have said. It runs in every process, not
only in the leader's, while anybody waits.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from remotegpu_server.db import tables
from remotegpu_server.db.engine import Database

RECHECK_S = 5.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a waiting agent has seen: it is woken when any of it is different."""

    host_id: str
    epoch: int
    revision: int | None
    token_id: str


class Rechecks:
    """Wakes the polls of a process whose host has changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[object, Mark] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, waiter: object, mark: Mark) -> None:
        """Look after a poll until :meth:`remove`."""
        self._waiting[waiter] = mark
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="agent-rechecks")

    def remove(self, waiter: object) -> None:
        self._waiting.pop(waiter, None)
        if not self._waiting and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(RECHECK_S)
            try:
                self._database.signals.publish({f"host:{host_id}" for host_id in await self._differing()})
            except (SQLAlchemyError, OSError) as error:
                _log.warning("agent_recheck_failed", error=type(error).__name__)

    async def _differing(self) -> set[str]:
        marks = list(self._waiting.values())
        host, token = tables.Host, tables.Token
        async with self._database.sessions() as db:
            rows = await db.execute(
                select(host.id, host.epoch, host.revision).where(
                    host.id.in_({mark.host_id for mark in marks})
                )
            )
            now = {host_id: (epoch, revision) for host_id, epoch, revision in rows}
            ended = set(
                await db.scalars(
                    select(token.id).where(
                        token.id.in_({mark.token_id for mark in marks}), token.revoked_at.is_not(None)
                    )
                )
            )
        return {
            mark.host_id
            for mark in marks
            if now.get(mark.host_id) != (mark.epoch, mark.revision) or mark.token_id in ended
        }
