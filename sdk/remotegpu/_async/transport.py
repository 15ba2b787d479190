"""Carries requests to one server: credentials, time limits, retries, errors. Knows no endpoint."""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from remotegpu import __version__, _http, _protocol
from remotegpu._config import Target
from remotegpu._protocol import Params, WireT
from remotegpu.errors import UnexpectedAnswer

ACTING_FOR = "X-RemoteGPU-On-Behalf-Of"
USER_AGENT = f"remotegpu/{__version__} python/{sys.version_info.major}.{sys.version_info.minor}"


class AsyncTransport:
    """One connection pool to one server."""

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float,
        max_retries: int,
        http_transport: _http.AsyncBaseTransport | None,
    ) -> None:
        self.url = target.url
        self.timeout_s = timeout_s
        self.acting_for: str | None = None
        self._max_retries = max_retries
        self._token = None if not target.token else _protocol.header_value(target.token, what="token")
        self._http = _http.AsyncClient(
            headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
            timeout=_protocol.timeout(timeout_s),
            follow_redirects=False,
            transport=http_transport,
        )

    def bound_to(self, username: str) -> AsyncTransport:
        """The same connections, acting for `username`."""
        bound = copy.copy(self)
        bound.acting_for = _protocol.header_value(username, what="user name")
        return bound

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(
        self,
        kind: type[WireT],
        method: str,
        path: str,
        *,
        body: object = None,
        params: Params | None = None,
        headers: dict[str, str] | None = None,
    ) -> WireT:
        """Send a request whose answer is a `kind`."""
        return _protocol.decode(
            kind, await self.send(method, path, body=body, params=params, headers=headers)
        )

    async def create(
        self, kind: type[WireT], path: str, *, body: object, idempotency_key: str | None
    ) -> WireT:
        """POST under an idempotency key: however often it is sent, it happens once."""
        headers = {"Idempotency-Key": idempotency_key or _protocol.new_key()}
        return _protocol.decode(
            kind, await self.send("POST", path, body=body, headers=headers, repeatable=True)
        )

    async def put_in_state(self, kind: type[WireT], path: str, *, body: object = None) -> WireT:
        """POST a verb that sets a state, and that may therefore be repeated."""
        return _protocol.decode(kind, await self.send("POST", path, body=body, repeatable=True))

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Params | None = None,
        headers: dict[str, str] | None = None,
        repeatable: bool | None = None,
        anonymous: bool = False,
        read_timeout_s: float | None = None,
    ) -> _http.Response:
        """Send a request, with retries where they are safe; the answer is a 2xx.

        `repeatable` says that sending it twice does no more than sending it once; left out, the method tells.
        """
        retries = _protocol.Retries(
            repeatable=method in _protocol.REPEATABLE_METHODS if repeatable is None else repeatable,
            limit=self._max_retries,
        )
        sent_headers = self._headers(anonymous=anonymous) | (headers or {})
        content = None
        if body is not None:
            content = _protocol.encode(body)
            sent_headers.setdefault("Content-Type", "application/json")
        while True:
            try:
                response = await self._http.request(
                    method,
                    self.url + path,
                    params=_protocol.query(params),
                    content=content,
                    headers=sent_headers,
                    timeout=_protocol.timeout(self.timeout_s, read_s=read_timeout_s),
                )
            except _http.RequestError as failure:
                pause_s = retries.after_failure(failure)
                if pause_s is None:
                    raise _protocol.failure_from(failure, url=self.url) from failure
            else:
                if response.is_success:
                    return response
                error = _protocol.error_from(response)
                pause_s = retries.after_error(error)
                if pause_s is None:
                    raise error
            await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        params: Params,
        headers: dict[str, str],
        silence_s: float,
        accept: str = "text/event-stream",
    ) -> AsyncIterator[_http.Response]:
        """Open a stream of events, or of bytes. One attempt; `silence_s` without a byte is a
        :class:`RequestTimeout`.
        """
        try:
            async with self._http.stream(
                "GET",
                self.url + path,
                params=_protocol.query(params),
                headers=self._headers() | {"Accept": accept, "Cache-Control": "no-store"} | headers,
                timeout=_protocol.timeout(self.timeout_s, read_s=silence_s),
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise _protocol.error_from(response)
                if not response.headers.get("Content-Type", "").startswith(accept):
                    what = "an event stream" if accept == "text/event-stream" else accept
                    raise UnexpectedAnswer(f"{self.url}{path} did not answer with {what}.")
                yield response
        except _http.RequestError as failure:
            raise _protocol.failure_from(failure, url=self.url) from failure

    def _headers(self, *, anonymous: bool = False) -> dict[str, str]:
        headers = {}
        if self._token is not None and not anonymous:
            headers["Authorization"] = f"Bearer {self._token}"
        if self.acting_for is not None:
            headers[ACTING_FOR] = self.acting_for
        return headers
