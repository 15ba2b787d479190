"""``/metrics`` of the agent: what was measured last, for a Prometheus that reaches this host.

Off unless ``--metrics-listen`` says where. On anything but a loopback address it takes a bearer token.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable

from remotegpu import exposition

log = logging.getLogger(__name__)

REQUEST_S = 5.0
"""For a whole request and its answer."""
HEAD_BYTES = 8192
AT_ONCE = 4
"""Connections; one more is ended at once."""
AGAIN_S = 60.0
"""After the address could not be had: another program may have it for a while."""


class Scrapes:
    """Answers ``GET /metrics``."""

    def __init__(self, host: str, port: int, *, token: str | None, tell: Callable[[], str]) -> None:
        self._host, self._port = host, port
        self._token = token
        self._tell = tell
        self._free = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Never returns. An address that is taken costs the scrapes and nothing else."""
        while True:
            try:
                server = await asyncio.start_server(self._serve, self._host, self._port, limit=HEAD_BYTES)
            except OSError as error:
                log.error("no /metrics on %s:%s: %s", self._host, self._port, error)
                await asyncio.sleep(AGAIN_S)
                continue
            async with server:
                await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._free.locked():  # nobody waits here: each connection has a file descriptor of the agent's
            writer.transport.abort()
            return
        try:
            async with self._free, asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.decode("latin-1")))
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.info("a scrape ended early: %s", type(error).__name__)
        finally:
            writer.transport.abort()  # close() alone keeps the socket for a client that never reads

    def _answer(self, head: str) -> bytes:
        first, *lines = head.split("\r\n")
        method, _, rest = first.partition(" ")
        if self._token is not None:
            fields = (line.partition(":") for line in lines)
            given = next((value.strip() for name, _, value in fields if name.lower() == "authorization"), "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return _response("401 Unauthorized", "A bearer token is needed.\n")
        if method != "GET" or rest.partition(" ")[0].partition("?")[0] != "/metrics":
            return _response("404 Not Found", "There is only GET /metrics.\n")
        return _response("200 OK", self._tell(), content_type=exposition.CONTENT_TYPE)


def _response(status: str, body: str, *, content_type: str = "text/plain; charset=utf-8") -> bytes:
    encoded = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(encoded)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + encoded
