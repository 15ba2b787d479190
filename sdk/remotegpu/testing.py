"""For tests of programs that use the client: clients that talk to an ASGI app in this process.

Nothing is read from this machine's configuration, no socket is opened and nothing is repeated. Answers come
whole, so event streams need a real server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

from remotegpu import _http
from remotegpu._async.client import AsyncClient
from remotegpu._sync.client import Client

URL = "http://remotegpu.test"
ResultT = TypeVar("ResultT")
App = Callable[[MutableMapping[str, Any], Callable[..., Any], Callable[..., Any]], Awaitable[None]]


def asgi_client(
    app: App,
    token: str = "",
    *,
    url: str = URL,
    timeout_s: float = 30.0,
    max_retries: int = 0,
) -> AsyncClient:
    """An asyncio client bound to `app`. The app's lifespan is the caller's to run."""
    transport = _http.ASGITransport(app=app)
    return AsyncClient(url, token, timeout_s=timeout_s, max_retries=max_retries, transport=transport)


def blocking_asgi_client(
    app: App,
    token: str = "",
    *,
    url: str = URL,
    timeout_s: float = 30.0,
    max_retries: int = 0,
) -> Client:
    """A blocking client bound to `app`, which runs in a thread of its own, its lifespan included, until the
    client is closed. :raises RuntimeError: the app refused to start.
    """
    transport = _InThread(app)
    return Client(url, token, timeout_s=timeout_s, max_retries=max_retries, transport=transport)


class _InThread(_http.BaseTransport):
    """Hands requests to an app that runs in an event loop in another thread."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._requests = _http.ASGITransport(app=app)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remotegpu-asgi", daemon=True)
        self._thread.start()
        self._to_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._from_app: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        try:
            self._lifespan: asyncio.Task[None] | None = self._run(self._start())
        except BaseException:
            self._end_thread()
            raise

    def handle_request(self, request: _http.Request) -> _http.Response:
        request.read()
        return self._run(self._answer(request))

    def close(self) -> None:
        """Shut the app down and end its thread."""
        if self._thread.is_alive():
            try:
                self._run(self._stop())
            finally:
                self._end_thread()

    async def _answer(self, request: _http.Request) -> _http.Response:
        answer = await self._requests.handle_async_request(request)
        content = await answer.aread()
        return _http.Response(answer.status_code, headers=answer.headers, content=content)

    async def _start(self) -> asyncio.Task[None] | None:
        """Run the app's lifespan up to where it serves; ``None`` for an app that has none."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        task = asyncio.ensure_future(self._app(scope, self._to_app.get, self._from_app.put))
        await self._to_app.put({"type": "lifespan.startup"})
        reply = await self._reply(task)
        if reply.get("type") == "lifespan.startup.failed":
            raise RuntimeError(f"The app did not start: {reply.get('message', '')}")
        return task if reply else None

    async def _stop(self) -> None:
        if self._lifespan is not None:
            await self._to_app.put({"type": "lifespan.shutdown"})
            await self._reply(self._lifespan)
            await self._lifespan

    async def _reply(self, task: asyncio.Future[None]) -> MutableMapping[str, Any]:
        """What the app says next; nothing from one that ended, which is how an app refuses a lifespan."""
        said = asyncio.ensure_future(self._from_app.get())
        either: set[asyncio.Future[Any]] = {said, task}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if said.done():
            return said.result()
        said.cancel()
        with suppress(Exception):
            await task
        return {}

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted test leaves no request behind
            raise

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
