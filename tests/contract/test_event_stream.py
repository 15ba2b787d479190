"""The event stream between the real client and a real server process that is killed."""

from __future__ import annotations

import asyncio

import remotegpu
from remotegpu_server.testing import LiveServer


async def test_stream_misses_nothing_when_the_server_is_killed(live_server: LiveServer) -> None:
    async with remotegpu.AsyncClient(live_server.url, "") as anonymous:
        session = await anonymous.auth.login(username="admin", password=live_server.admin_password)
    async with remotegpu.AsyncClient(live_server.url, session.secret) as client:
        stream = client.events.stream(after="0", subject_type="image")
        await client.images.create(name="first", reference="registry.example.org/first:1")
        async with asyncio.timeout(60):
            first = await anext(stream)
            live_server.kill()
            await asyncio.to_thread(live_server.start)
            made = await client.images.create(name="second", reference="registry.example.org/second:1")
            second = await anext(stream)
        await stream.aclose()
    assert first.subject_id != second.subject_id == made.id
    assert (first.kind, second.kind) == ("image.created", "image.created")
