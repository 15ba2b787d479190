"""The journey where no container engine is: `make up` with the process runtime, a browser in front."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2e.conftest import _free_port_block
from e2e.stack import HubUser, Stack, hub_page, until
from playwright.sync_api import Browser

from remotegpu_agent import processes

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

PASSWORD = "correct horse battery"
CARD = ".remotegpu-dashboard"


@dataclass(frozen=True)
class StackWithoutDocker(Stack):
    """An installation that was told to run notebooks as processes."""

    @property
    def environ(self) -> dict[str, str]:
        return {
            **super().environ, "REMOTEGPU_RUNTIME": "process", "REMOTEGPU_SIMULATE_GPUS": "2xA100-80GB"
        }  # fmt: skip

    def processes(self) -> dict[int, str]:
        """Everything that was started for this data folder, by its environment or its command line."""
        mark, folder = f"REMOTEGPU_HOME={self.home}\0".encode(), str(self.home)
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                command = (entry / "cmdline").read_text().replace("\0", " ")
                if folder in command or mark in (entry / "environ").read_bytes() + b"\0":
                    found[int(entry.name)] = command
            except OSError:  # it ended while we looked
                continue
        return found

    def listening(self) -> list[int]:
        """Ports of the installation where somebody answers."""
        answering = []
        for port in range(self.port, self.port + 4):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    answering.append(port)
        return answering


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackWithoutDocker]:
    installation = StackWithoutDocker(home=tmp_path_factory.mktemp("no-docker"), port=_free_port_block())
    installation.make("up", "DETACH=1")
    try:
        yield installation
    finally:
        installation.make("down")


def test_notebook_without_docker_from_login_to_nothing_left(
    bare: StackWithoutDocker, browser: Browser
) -> None:
    status = bare.status()
    assert status["runtime"] == "process"
    assert "not isolated" in status["runtime_detail"]
    with bare.admin() as admin, hub_page(browser, bare, "lise", PASSWORD) as user:
        admin.users.create(username="lise", password=PASSWORD)
        user.log_in()
        _form_says_what_it_is(user)
        user.page.click("#spawn_form input[type=submit], #spawn_form button[type=submit]")
        user.await_lab()
        environment = next(iter(admin.environments.list(owner="lise")))
        assert environment.status == "running"
        gpu = environment.allocated_gpus[0]
        assert gpu.simulated
        host_id = next(iter(bare.host_ids()))
        marker = f"{host_id}/{environment.id}/"
        assert processes.marked(marker)

        config = json.loads(user.page.locator("#jupyter-config-data").inner_text())
        assert config["news"] == {"disabled": True}, "JupyterLab asks its makers for news"
        user.open_notebook("examples/01-my-gpus.ipynb")
        outputs = user.run_cells()
        assert outputs
        assert not [text for text in outputs if "Traceback" in text], outputs
        card = user.page.locator(CARD).first
        card.wait_for(timeout=30_000)
        until("the card shows the GPU of this environment", lambda: gpu.model in card.inner_text())
        assert "simulated" in card.inner_text().lower()

        user.stop_default_server()
        until("the GPU is free again", lambda: all(gpu.free for gpu in admin.gpus.list()))
        assert admin.environments.get(environment.id).status == "stopped"
        assert processes.marked(marker) == [], "a process of the environment is left"
        assert user.failures == []

        user.page.goto(f"{bare.hub_url}/hub/spawn")
        user.page.click("#spawn_form input[type=submit], #spawn_form button[type=submit]")
        user.await_lab()
        again = admin.environments.get(environment.id)
        assert again.generation > environment.generation
    port = int(str(again.address).rpartition(":")[2])
    bare.make("down")
    assert bare.processes() == {}, "make down left processes"
    assert processes.marked(marker) == [], "make down left a process of an environment"
    assert bare.listening() == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the notebook still answers"


def _form_says_what_it_is(user: HubUser) -> None:
    user.page.goto(f"{user.stack.hub_url}/hub/spawn")
    user.page.wait_for_selector("#spawn_form")
    user.page.check("input[name=gpu_models][value=A100-80GB]")
    user.page.fill("input[name=gpus]", "1")
    outcome = user.page.locator("#rgpu-outcome")
    until("the form says that it would start now", lambda: "would start now" in outcome.inner_text().lower())
    image = user.page.locator("select[name=image] option").first.inner_text().lower()
    assert "process of this machine" in image
    assert "not isolated" in image
    model = user.page.locator(".form-check", has=user.page.locator("[name=gpu_models]:checked")).inner_text()
    assert "simulated" in model.lower()
