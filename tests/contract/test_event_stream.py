"""The event stream between the real client and a real server process that is killed."""

from __future__ import annotations

import asyncio

import remotegpu
from remotegpu_server.testing import LiveServer


async def test_stream_misses_nothing_when_the_server_is_killed(live_server: LiveServer) -> None:
    async with remotegpu.AsyncClient(live_server.url, "") as anonymous:
        session = await anonymous.auth.login(username="admin", password=live_server.admin_password)
    async with remotegpu.AsyncClient(live_server.url, session.secret) as client:
        stream = client.events.watch(after="0", subject_type="image")
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


async def test_watches_go_on_when_the_server_is_killed(live_server: LiveServer) -> None:
    async with remotegpu.AsyncClient(live_server.url, "") as anonymous:
        session = await anonymous.auth.login(username="admin", password=live_server.admin_password)
    async with remotegpu.AsyncClient(live_server.url, session.secret) as client, asyncio.timeout(60):
        await client.images.create(name="base", reference="registry.example.org/base:1")
        made = await client.environments.create(name="work", image="base")
        host = await client.hosts.create(name="one")
        environments, hosts = client.environments.watch(made.id), client.hosts.watch("one")
        assert (await anext(environments)).status == "pending"
        assert (await anext(hosts)).operational == "pending"
        live_server.kill()
        await asyncio.to_thread(live_server.start)
        await client.hosts.cordon(host.id)
        assert (await anext(hosts)).operational == "cordoned"
        await client.environments.stop(made.id)
        assert (await anext(environments)).status == "stopped"
        assert [piece async for piece in client.environments.follow(made.id)] == []
        await client.hosts.delete(host.id)
        assert [state.name async for state in hosts] == []
        await environments.aclose()
