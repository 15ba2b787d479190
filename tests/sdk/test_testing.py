"""Clients on an app in the same process, for people's own tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

import remotegpu
from remotegpu.testing import asgi_client, blocking_asgi_client

from .samples import IMAGE, page

Scope = dict[str, Any]


class App:
    """An ASGI app that answers every request with one list, and notes what it was asked."""

    def __init__(self, *, lifespan: str = "complete") -> None:
        self.lifespan = lifespan
        self.noted: list[str] = []
        self.threads: set[int] = set()

    async def __call__(self, scope: Scope, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        self.threads.add(threading.get_ident())
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        body = (await receive())["body"]
        self.noted.append(f"{scope['method']} {scope['path']} {body.decode()}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(page(IMAGE)).encode()})

    async def _live(self, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if self.lifespan == "none":
            raise ValueError("this app knows no lifespan")
        assert (await receive())["type"] == "lifespan.startup"
        if self.lifespan == "failed":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        self.noted.append("started")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.noted.append("stopped")
        await send({"type": "lifespan.shutdown.complete"})


def test_blocking_client_runs_the_app_and_its_lifespan_in_one_other_thread() -> None:
    app = App()
    before = threading.active_count()
    with blocking_asgi_client(app, "rgu_x_y") as client:
        assert [image.name for image in client.images.list()] == ["base"]
    assert app.noted == ["started", "GET /v1/images ", "stopped"]
    assert len(app.threads) == 1
    assert threading.get_ident() not in app.threads
    assert threading.active_count() == before


def test_app_without_a_lifespan_is_served_too() -> None:
    with blocking_asgi_client(App(lifespan="none")) as client:
        assert len(client.images.list().items) == 1


def test_app_that_does_not_start_says_why_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no database"):
        blocking_asgi_client(App(lifespan="failed"))
    assert threading.active_count() == before


def test_configuration_of_the_machine_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTEGPU_URL", "https://real.example.org")
    with blocking_asgi_client(App()) as client:
        assert client.url == "http://remotegpu.test"


async def test_asyncio_client_is_served_in_this_loop() -> None:
    app = App()
    async with asgi_client(app) as client:
        assert isinstance(client, remotegpu.AsyncClient)
        assert [image.name async for image in await client.images.list()] == ["base"]
    assert app.threads == {threading.get_ident()}
