"""One installation from `make up` for all end-to-end tests, and one browser."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.stack import Stack, containers
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")


def _free_port_block() -> int:
    """A port with the three after it free: hub, proxy control, hub API, server."""
    for port in range(18100, 19000, 10):
        try:
            for offset in range(4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise AssertionError("no four free ports in a row between 18100 and 19000")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    installation = Stack(home=tmp_path_factory.mktemp("remotegpu"), port=_free_port_block())
    installation.make("up", "DETACH=1")
    try:
        yield installation
        hosts = installation.host_ids()
    finally:
        installation.make("down")
    if shutil.which("docker"):
        assert containers(hosts) == set(), "make down left containers behind"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("no /usr/bin/chromium: install the distribution's chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-background-networking"]
        )
        yield chromium
        chromium.close()
