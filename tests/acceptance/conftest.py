"""One site for all checks; after each the invariants hold and its host is empty again."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acceptance.site import Site
from hub.stack import PLAIN, TEST_SERVICE, Hub, proxy_command

from remotegpu_server.embedded_postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def running_site(
    cluster: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    cluster.clone_database(template, "acceptance")
    made = Site(tmp_path_factory.mktemp("acceptance"), cluster.url("acceptance"), sys.executable)
    yield made
    made.stop()
    cluster.drop_database("acceptance")


@pytest.fixture
def site(running_site: Site) -> Iterator[Site]:
    yield running_site
    running_site.assert_invariants()
    running_site.free_again()
    running_site.assert_invariants()


@pytest.fixture(scope="session")
def make_hub(running_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Hub]]:
    made: list[Hub] = []

    def make(config: str) -> Hub:
        hub = Hub(
            tmp_path_factory.mktemp("hub"),
            server_url=running_site.servers[0].url,
            hub_token_file=running_site.servers[0].folder / "hub-token",
            proxy=proxy_command(Path(tempfile.gettempdir()) / "remotegpu-test-node"),
            config=PLAIN + TEST_SERVICE + config,
        )
        made.append(hub)
        return hub.start()

    yield make
    for hub in made:
        hub.stop()


@pytest.fixture(scope="session")
def hub(make_hub: Callable[[str], Hub]) -> Hub:
    """It asks every second whether what it started still runs."""
    return make_hub("c.Spawner.poll_interval = 1\n")
