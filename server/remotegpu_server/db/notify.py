"""Hints between coroutines and processes: something behind a key changed, look again.

A hint is never the truth. It may be lost, doubled or early, so every waiter also looks on its own from time
to time. Keys are short: ``host:<id>``, ``environment:<id>``, ``events``, ``queue``, ``log-request:<id>``.

A hint given in a transaction (:func:`notify`) is sent after its commit: local waiters wake at once, and other
processes by NOTIFY from a connection of its own, because NOTIFY inside a transaction takes a global lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, cast

import psycopg
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

CHANNEL = "remotegpu"
_RECONNECT_S = (0.1, 0.5, 2.0, 5.0)
_HINTS = "remotegpu_hints"
_log = structlog.get_logger(__name__)


def notify(db: AsyncSession, *keys: str) -> None:
    """Wake whoever waits for these keys, once this session commits; a rollback forgets them."""
    db.sync_session.info.setdefault(_HINTS, set()).update(keys)


def take_hints(info: dict[object, object]) -> set[str]:
    """The hints of a session that has just ended its transaction."""
    return cast("set[str]", info.pop(_HINTS, set()))


class Watch:
    """Wakes on hints for its keys. Made before the first look, so nothing between look and wait is missed."""

    def __init__(self, signals: Signals, keys: tuple[str, ...]) -> None:
        self._signals = signals
        self._keys = keys
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        for key in self._keys:
            self._signals._watches.setdefault(key, set()).add(self)
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None
    ) -> None:
        for key in self._keys:
            watches = self._signals._watches.get(key)
            if watches is not None:
                watches.discard(self)
                if not watches:
                    del self._signals._watches[key]

    def wake(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """True when a hint came, False after ``timeout_s`` without one, or when the server stops."""
        if self._signals.stopping:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return not self._signals.stopping


class Signals:
    """All hints of one process: one LISTEN connection, one sender.

    ``conninfo`` is libpq's; without :meth:`start` hints stay inside the process.
    """

    def __init__(self, conninfo: str) -> None:
        self.stopping = False
        """True once the server shuts down: long polls and streams end."""
        self.connected = asyncio.Event()
        """Set while the LISTEN connection stands."""
        self._conninfo = conninfo
        self._origin = secrets.token_hex(6)
        self._watches: dict[str, set[Watch]] = {}
        self._outgoing: set[str] = set()
        self._send = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def watch(self, *keys: str) -> Watch:
        """Use it as ``with signals.watch("host:1") as watch``: look, then ``await watch.wait(seconds)``."""
        return Watch(self, keys)

    def publish(self, keys: Iterable[str]) -> None:
        """Wake local waiters now and other processes soon."""
        keys = set(keys)
        if not keys:
            return
        self._wake(keys)
        if self._tasks:
            self._outgoing |= keys
            self._send.set()

    def start(self) -> None:
        """Listen and send from now on."""
        self._tasks = [
            asyncio.create_task(self._paced(self._listen), name="signals-listen"),
            asyncio.create_task(self._paced(self._forward), name="signals-send"),
        ]

    def stop_waiting(self) -> None:
        """End every wait, present and future: the server shuts down."""
        self.stopping = True
        self._wake(set(self._watches))

    async def stop(self) -> None:
        """End the connections."""
        self.stop_waiting()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self, keys: Iterable[str]) -> None:
        for key in keys:
            for watch in tuple(self._watches.get(key, ())):
                watch.wake()

    async def _paced(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run for ever; after a lost connection wait a little longer each time."""
        failures = 0
        while True:
            try:
                await run()
                failures = 0
            except (psycopg.Error, OSError) as error:
                failures += 1
                _log.warning("signals_connection_lost", error=type(error).__name__, failures=failures)
            finally:
                self.connected.clear()
            await asyncio.sleep(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])

    async def _listen(self) -> None:
        async with await self._connect() as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            self.connected.set()
            # Hints sent while nobody listened are lost: let everybody look again.
            self._wake(set(self._watches))
            async for message in connection.notifies():
                origin, _, key = message.payload.partition(" ")
                if origin != self._origin:
                    self._wake((key,))

    async def _forward(self) -> None:
        async with await self._connect() as connection:
            while True:
                await self._send.wait()
                self._send.clear()
                keys, self._outgoing = self._outgoing, set()
                payloads = [f"{self._origin} {key}" for key in keys]
                await connection.execute(
                    "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload", (CHANNEL, payloads)
                )

    async def _connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        opening = asyncio.ensure_future(
            psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, connect_timeout=5, keepalives_idle=15
            )
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # A connection that is cancelled half open is never closed: wait for it, at most its timeout.
            with contextlib.suppress(psycopg.Error, OSError):
                await (await opening).close()
            raise


@contextlib.contextmanager
def collected_hints(db: AsyncSession) -> Iterator[set[str]]:
    """The keys that the block hints at, for tests of services that do not commit."""
    found: set[str] = set()
    yield found
    found |= db.sync_session.info.get(_HINTS, set())
