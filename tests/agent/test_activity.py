"""What notebook servers tell of their kernels without a token, and what is made of those that do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from remotegpu_agent.activity import Kernels


@asynccontextmanager
async def answering(answer: Callable[[str], bytes]) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers each path; gives its address and the paths that it was asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).split()[1].decode()
        asked.append(path)
        writer.write(answer(path))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        await server.wait_closed()


def status(at: str) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps({"last_activity": at, "kernels": 1}).encode()


async def test_last_activity_is_told_as_seconds_and_the_question_is_no_activity() -> None:
    at = (datetime.now(UTC) - timedelta(seconds=90)).isoformat()
    async with answering(lambda path: status(at)) as (address, asked):
        found = await Kernels().idle_s({"env-1": (address, "/user/ada/api")})
    assert 90 <= found["env-1"] < 100
    assert asked == ["/user/ada/api/status?no_track_activity=1"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 403 Forbidden\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\n{}",
        status("yesterday"),
        status("2026-11-24T10:00:00"),
        b"",
    ],
)
async def test_server_that_does_not_tell_is_left_out_and_not_asked_again_soon(answer: bytes) -> None:
    kernels = Kernels()
    async with answering(lambda path: answer) as (address, asked):
        for _ in range(3):
            assert await kernels.idle_s({"env-1": (address, "/")}) == {}
    assert asked == ["/api/status?no_track_activity=1"]


async def test_server_that_is_away_is_left_out() -> None:
    assert await Kernels().idle_s({"env-1": ("http://127.0.0.1:1", "/")}) == {}
