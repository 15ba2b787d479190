"""What the SDK's tests share: a server that plays scripts, and a machine without configuration."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import remotegpu
from remotegpu import _protocol

from .scripted_server import ScriptedServer

TOKEN = "rgu_abc_0123456789"


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's real configuration reaches a test."""
    for name in ("REMOTEGPU_URL", "REMOTEGPU_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        thread = threading.Thread(target=scripted.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield scripted
        scripted.finished.set()
        scripted.shutdown()
        thread.join()


@pytest.fixture
def client(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[remotegpu.Client]:
    """A client that retries at once: how long it would wait is tested on its own."""
    monkeypatch.setattr(_protocol, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(_protocol.Reconnects, "FIRST_PAUSE_S", 0.0)
    with remotegpu.Client(server.url, TOKEN, timeout_s=5) as made:
        yield made
