"""Does a notebook server answer? A plain connect, then one GET; any answer below 500 counts."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

PROBE_EVERY_S = 0.05
ANSWER_S = 5.0
"""How long one answer may take: a starting server can be slow to give its first."""


async def wait_ready(address: str, path: str) -> None:
    """Return when the server answers. The caller bounds the wait."""
    while not await answers(address, path):  # noqa: ASYNC110 - nothing on this side announces it
        await asyncio.sleep(PROBE_EVERY_S)


async def answers(address: str, path: str) -> bool:
    url = urlsplit(address)
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
            try:
                writer.write(
                    f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode(
                        "latin-1"
                    )
                )
                status_line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    words = status_line.split()
    return len(words) >= 2 and words[0].startswith(b"HTTP/") and words[1].isdigit() and int(words[1]) < 500
