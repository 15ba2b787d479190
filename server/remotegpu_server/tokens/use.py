"""When tokens were last used: collected in memory, written once a minute, never in a request."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from sqlalchemy import func, or_, update
from sqlalchemy.exc import SQLAlchemyError

from remotegpu_server.db import tables
from remotegpu_server.db.engine import Database

EVERY_S = 60.0
_log = structlog.get_logger(__name__)


class TokenUse:
    """Remembers which tokens were seen since the last write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def seen(self, token_id: str) -> None:
        self._seen.add(token_id)

    def start(self) -> None:
        self._task = asyncio.create_task(self._write_for_ever(), name="token-use")

    async def stop(self) -> None:
        """Write what is left."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.write()

    async def write(self) -> None:
        """Set ``last_used_at`` of the tokens seen. Losing a minute of it on a crash is fine."""
        seen, self._seen = self._seen, set()
        if not seen:
            return
        stale = or_(
            tables.Token.last_used_at.is_(None),
            tables.Token.last_used_at < func.now() - timedelta(seconds=EVERY_S / 2),
        )
        try:
            async with self._database.sessions() as db:
                await db.execute(
                    update(tables.Token)
                    .where(tables.Token.id.in_(seen), stale)
                    .values(last_used_at=func.now())
                    .execution_options(synchronize_session=False)
                )
                await db.commit()
        except (SQLAlchemyError, OSError) as error:
            self._seen |= seen
            _log.warning("token_use_not_written", error=type(error).__name__)

    async def _write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.write()
