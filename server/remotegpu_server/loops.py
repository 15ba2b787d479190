"""Background loops: named, guarded, run by one leader.

A slice offers ``LOOP = Loop(name="queue", every_s=1.0, run=tick, wake="queue")`` and adds it to ``LOOPS`` in
``app.py``. One call of ``run`` is one pass; it works in short transactions::

    async def tick(work: Work) -> None:
        async with work.session() as db:   # fenced by the leader's term, committed at the end
            ...
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server import leadership, observability
from remotegpu_server.crypto import Vault
from remotegpu_server.db.engine import Database
from remotegpu_server.leadership import LeadershipLost
from remotegpu_server.settings import Settings
from remotegpu_server.watchdog import Watchdog

PASS_DEADLINE_S = 60.0
_BACKOFF_MAX_S = 60.0
_DATABASE_NOW = text("SELECT extract(epoch FROM clock_timestamp())")
_log = structlog.get_logger(__name__)


class DatabaseClock:
    """Whether the database's clock goes as time does, judged by this process's monotonic clock.

    What is overdue by a clock that was just set an hour ahead is not overdue.
    """

    JUMP_S = 5.0
    """A clock that is slewed moves by milliseconds between two looks."""

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self.steady_since: float | None = None
        """``time.monotonic()`` of the look that saw the last jump; ``None`` without one."""

    async def steady_for_s(self, db: AsyncSession) -> float:
        """Look; seconds since the last jump that was seen, infinite without one."""
        offset_s = float(await db.scalar(_DATABASE_NOW) or 0.0) - time.monotonic()
        if self._offset_s is not None and abs(offset_s - self._offset_s) > self.JUMP_S:
            _log.warning("database_clock_jumped", seconds=round(offset_s - self._offset_s, 1))
            self.steady_since = time.monotonic()
        self._offset_s = offset_s
        return math.inf if self.steady_since is None else time.monotonic() - self.steady_since


@dataclass(frozen=True)
class Work:
    """What a pass of a loop works with."""

    database: Database
    settings: Settings
    vault: Vault
    candidate: leadership.Candidate
    leading_since: float
    """``time.monotonic()`` of the moment this process became leader."""
    clock: DatabaseClock = field(default_factory=DatabaseClock)

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A transaction that only a leader can commit; rolled back on any error."""
        async with self.database.sessions() as db:
            await self.candidate.fence(db)
            yield db
            await db.commit()

    def led_for_s(self) -> float:
        """Seconds since this process became leader."""
        return time.monotonic() - self.leading_since


@dataclass(frozen=True)
class Loop:
    """One loop: ``run`` is called every ``every_s`` seconds, and early when the hint ``wake`` comes."""

    name: str
    every_s: float | Callable[[Settings], float]
    run: Callable[[Work], Awaitable[None]]
    wake: str | None = None

    def pause_s(self, settings: Settings) -> float:
        return self.every_s(settings) if callable(self.every_s) else self.every_s


class LoopRunner:
    """Runs all loops while this process leads, and tries to lead otherwise."""

    def __init__(
        self, loops: Sequence[Loop], *, database: Database, settings: Settings, vault: Vault
    ) -> None:
        self._loops = loops
        self._database = database
        self._settings = settings
        self._vault = vault
        self._candidate = leadership.Candidate("loops")
        self._task: asyncio.Task[None] | None = None
        self._passes: list[asyncio.Task[None]] = []
        self._watchdog = Watchdog(settings.watchdog_s)

    @property
    def leading(self) -> bool:
        return bool(self._passes)

    def start(self) -> None:
        """Begin; needs a running event loop."""
        self._task = asyncio.create_task(self._lead_for_ever(), name="loops-leader")
        self._watchdog.start()

    async def stop(self) -> None:
        """Stop passes, then resign, so that another process leads at once. A second stop does nothing."""
        task, self._task = self._task, None
        if task is None:
            return
        self._watchdog.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._stop_passes()
        if self._candidate.term is not None:
            try:
                async with self._database.sessions() as db:
                    await self._candidate.resign(db)
                    await db.commit()
            except (SQLAlchemyError, OSError) as error:
                _log.warning("resign_failed", error=type(error).__name__)

    async def _lead_for_ever(self) -> None:
        valid_until = 0.0
        while True:
            self._watchdog.alive("leadership", pause_s=leadership.LEASE_S + leadership.RENEW_S)
            asked_at = time.monotonic()
            try:
                async with asyncio.timeout(leadership.LEASE_S), self._database.sessions() as db:
                    leads = await self._candidate.acquire(db)
                    await db.commit()
                valid_until = asked_at + leadership.LEASE_S
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                _log.warning("leadership_unknown", error=type(error).__name__)
                leads = self.leading and time.monotonic() < valid_until
            if leads and not self._passes:
                self._start_passes()
            elif not leads and self._passes:
                _log.warning("leadership_lost")
                await self._stop_passes()
            observability.LEADING.set(1 if leads else 0)
            await asyncio.sleep(leadership.RENEW_S * random.uniform(0.9, 1.0))  # noqa: S311

    def _start_passes(self) -> None:
        _log.info("leadership_taken", term=self._candidate.term)
        work = Work(
            database=self._database,
            settings=self._settings,
            vault=self._vault,
            candidate=self._candidate,
            leading_since=time.monotonic(),
        )
        self._passes = [
            asyncio.create_task(self._repeat(loop, work), name=f"loop-{loop.name}") for loop in self._loops
        ]

    async def _stop_passes(self) -> None:
        passes, self._passes = self._passes, []
        for task in passes:
            task.cancel()
        await asyncio.gather(*passes, return_exceptions=True)
        for loop in self._loops:
            self._watchdog.forget(loop.name)

    async def _repeat(self, loop: Loop, work: Work) -> None:
        failures = 0
        with self._database.signals.watch(*([loop.wake] if loop.wake else [])) as watch:
            while True:
                self._watchdog.alive(loop.name)
                failures = 0 if await run_guarded(loop, work) else failures + 1
                pause_s = loop.pause_s(self._settings)
                self._watchdog.alive(loop.name, pause_s=max(pause_s, _BACKOFF_MAX_S))
                if failures:
                    await asyncio.sleep(min(pause_s * 2**failures, _BACKOFF_MAX_S))
                else:
                    await watch.wait(pause_s)
                    if self._database.signals.stopping:
                        return


@contextlib.contextmanager
def by_itself(loop: str, item: str) -> Iterator[None]:
    """Around one item of a pass: what it raises is logged and counted, and holds up nobody behind it.

    What is not about the item ends the pass all the same: a lost leadership, a database that is gone.
    """
    try:
        yield
    except (LeadershipLost, OSError, PoolTimeout):
        raise
    except Exception as error:  # one bad item must not stop the others: it is counted and tried again
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        _log.exception("loop_item_failed", loop=loop, item=item)
        observability.LOOP_ITEM_FAILURES.labels(loop).inc()


async def run_guarded(loop: Loop, work: Work) -> bool:
    """One pass; False when it failed, which is logged and counted."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(PASS_DEADLINE_S):
            await loop.run(work)
    except LeadershipLost:
        _log.info("loop_fenced", loop=loop.name)
        observability.LOOP_FAILURES.labels(loop.name).inc()
        return False
    except Exception:  # noqa: BLE001  one bad pass must not end the loop: it is logged, counted and tried again
        _log.exception("loop_failed", loop=loop.name)
        observability.LOOP_FAILURES.labels(loop.name).inc()
        return False
    observability.LOOP_LAST_TICK.labels(loop.name).set_to_current_time()
    observability.LOOP_SECONDS.labels(loop.name).observe(time.monotonic() - started)
    return True
