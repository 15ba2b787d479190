"""``/metrics`` of the agent: with its token, in the field's names, and no harm from bad requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from remotegpu import exposition
from remotegpu_agent import scrapes
from remotegpu_agent.scrapes import Scrapes
from remotegpu_agent.settings import Settings, SettingsError

TOKEN = "0123456789abcdef"


def _told() -> str:
    where = exposition.gpu_labels(
        index=0, uuid="GPU-1", product='NVIDIA "A100"', hostname="one", simulated=False
    )
    return "".join(exposition.gpus([(where, {"temperature_c": 40.0, "power_w": None})]))


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    serving = asyncio.create_task(Scrapes("127.0.0.1", free, token=TOKEN, tell=_told).run())
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", free)
                writer.close()
                break
            await asyncio.sleep(0.02)
    yield free
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_scrape_with_its_token_gets_what_was_measured_and_no_other(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            assert (await client.get("/metrics", headers=headers)).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/other", headers=right)).status_code == 404
        assert (await client.post("/metrics", headers=right)).status_code == 404
        answer = await client.get("/metrics", headers=right)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == exposition.CONTENT_TYPE
    assert answer.text.splitlines()[-1] == (
        'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1",device="nvidia0",modelName="NVIDIA \\"A100\\"",'
        'Hostname="one",simulated="false"} 40'
    )
    assert "POWER" not in answer.text, "what nobody measured has no line"


async def test_endless_and_broken_requests_end_and_the_next_scrape_is_answered(port: int) -> None:
    for sent in (b"x" * 20000, b"GET /metrics HTTP/1.1\r\nAuth", b"\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert b" 200 " not in await reader.read()
        writer.close()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answer = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200


async def test_connections_that_say_nothing_take_no_more_of_the_agent_than_their_few_places(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrapes, "REQUEST_S", 60.0)
    async with contextlib.AsyncExitStack() as stack:
        idle = []
        for _ in range(scrapes.AT_ONCE + 20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            idle.append(asyncio.create_task(reader.read()))
        async with asyncio.timeout(20):  # far less than the time for a request
            for ended in itertools.islice(asyncio.as_completed(idle), 20):
                with contextlib.suppress(ConnectionError):
                    assert await ended == b""
        assert sum(not one.done() for one in idle) <= scrapes.AT_ONCE
    await asyncio.gather(*idle, return_exceptions=True)


async def test_client_that_reads_nothing_loses_its_socket_at_the_end_of_its_time(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 48 * 2**20  # more than the buffers of two sockets
    monkeypatch.setattr(scrapes, "REQUEST_S", 0.5)
    monkeypatch.setattr(Scrapes, "_answer", lambda _self, _head: bytes(size))
    with socket.create_connection(("127.0.0.1", port)) as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        await asyncio.sleep(3)
        deaf.settimeout(20)

        def rest() -> int:
            return sum(len(part) for part in iter(lambda: deaf.recv(2**20), b""))

        assert await asyncio.to_thread(rest) < size


def test_address_that_others_reach_needs_a_token() -> None:
    given = {"url": "http://x", "state_dir": Path("/x"), "home_root": Path("/x")}
    assert Settings(**given, metrics_listen=("127.0.0.1", 9835)).metrics_token is None  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="--metrics-token-file"):
        Settings(**given, metrics_listen=("0.0.0.0", 9835))  # type: ignore[arg-type] # noqa: S104
