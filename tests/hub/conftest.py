"""One server, agent and hub for most tests; tests that kill parts make their own hub."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub.browsing import CHROMIUM, chromium
from hub.stack import PLAIN, TEST_SERVICE, Hub, Stack, proxy_command
from playwright.sync_api import Browser

from remotegpu_server.embedded_postgres import EmbeddedPostgres
from remotegpu_server.testing import LiveServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def proxy() -> list[str]:
    return proxy_command(Path(tempfile.gettempdir()) / "remotegpu-test-node")


@pytest.fixture(scope="module")
def simulated_gpus() -> str:
    """What the host simulates; a module that needs another one has a fixture of this name."""
    return "2xA100-80GB"


@pytest.fixture(scope="module")
def stack(
    cluster: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory, simulated_gpus: str
) -> Iterator[Stack]:
    name = f"hub_{next(_numbers)}"
    cluster.clone_database(template, name)
    folder = tmp_path_factory.mktemp("stack")
    live = LiveServer(database_url=cluster.url(name), folder=folder)
    live.start()
    try:
        made = Stack(live, folder, gpus=simulated_gpus)
        yield made
        made.stop()
    finally:
        live.stop()
        cluster.drop_database(name)


@pytest.fixture(scope="module")
def make_hub(
    stack: Stack, proxy: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Hub]]:
    """Start a hub of one's own: ``make_hub(config="...")``, the part after the three lines of a site."""
    made: list[Hub] = []

    def make(config: str = "", *, plain: str = PLAIN) -> Hub:
        hub = Hub(
            tmp_path_factory.mktemp("hub"),
            server_url=stack.live.url,
            hub_token_file=stack.live.folder / "hub-token",
            proxy=proxy,
            config=plain + TEST_SERVICE + config,
        )
        made.append(hub)
        return hub.start()

    yield make
    for hub in made:
        hub.stop()


@pytest.fixture(scope="module")
def hub(make_hub: Callable[..., Hub]) -> Hub:
    return make_hub()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("needs /usr/bin/chromium")
    with chromium() as made:
        yield made


@pytest.fixture
def username(request: pytest.FixtureRequest) -> str:
    """A user name of this test's own."""
    return f"user{next(_numbers)}"


@pytest.fixture(autouse=True)
def _free_again(stack: Stack) -> Iterator[None]:
    """A test that fails leaves the GPUs to the next one."""
    yield
    stack.stop_all()
