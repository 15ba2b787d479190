"""The card in a real JupyterLab, drawn by a real browser, in both themes."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from notebooks.standin import TOKEN, StandIn, gpu, usage
from playwright.sync_api import Browser, Page, sync_playwright

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CHROMIUM = "/usr/bin/chromium"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "examples" / "01-my-gpus.ipynb"
CARD = ".remotegpu-dashboard"
START_TIMEOUT_S = 60

if not Path(CHROMIUM).exists():
    pytest.skip("needs /usr/bin/chromium", allow_module_level=True)


@contextmanager
def jupyterlab(home: Path) -> Iterator[str]:
    """JupyterLab on the example, with the environment of the test."""
    (home / "examples").mkdir()
    shutil.copy(NOTEBOOK, home / "examples")
    settings = home / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (home / "lab.log").open("w")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
            f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={home}",
            "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
        ],
        cwd=home,
        env={**os.environ, "HOME": str(home), "JUPYTER_PLATFORM_DIRS": "0"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _await_http(f"{url}/api/status", process)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _await_http(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "JupyterLab ended"
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)  # a foreign process that has no event to wait for
        else:
            return
    raise AssertionError("JupyterLab did not answer")


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield chromium
        chromium.close()


def command(page: Page, name: str, arguments: dict[str, Any] | None = None) -> None:
    # Not awaited: `run all` only ends with the last cell.
    script = "([name, args]) => { void window.jupyterapp.commands.execute(name, args); }"
    page.evaluate(script, [name, arguments or {}])


def test_card_in_jupyterlab_follows_the_server_in_both_themes(
    server: StandIn, tmp_path: Path, browser: Browser
) -> None:
    foreign: list[str] = []
    frames: list[str] = []
    with jupyterlab(tmp_path) as url:
        page = browser.new_page(viewport={"width": 1180, "height": 940}, device_scale_factor=2)
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((url, "data:", "blob:")) else foreign.append(request.url)
            ),
        )
        page.on(
            "websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame)))
        )
        page.set_default_timeout(20_000)
        page.goto(f"{url}/lab/tree/examples/01-my-gpus.ipynb")
        page.wait_for_selector(".jp-Notebook", timeout=60_000)
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=60_000)
        command(page, "application:toggle-left-area")
        command(page, "notebook:run-all-cells")
        card = page.locator(CARD).first
        card.wait_for(timeout=60_000)
        page.wait_for_selector(f"{CARD}[data-state=live]", timeout=30_000)

        assert "A100-80GB" in card.inner_text()
        assert "simulated" in card.inner_text()
        assert "58 °C" in card.inner_text()
        _photograph(page, "light")

        server.usage = usage(gpu(busy=0.9), gpu(1, model="<script>window.hacked=1</script>", busy=0.3))
        page.wait_for_selector("text=<script>window.hacked=1</script>", timeout=15_000)
        assert page.evaluate("window.hacked") is None
        assert card.locator(".rg-gpu").count() == 2

        server.usage = usage(gpu(busy=0.75), gpu(1, busy=0.35))
        command(page, "apputils:change-theme", {"theme": "JupyterLab Dark"})
        page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
        page.wait_for_function(f"() => !document.querySelector('{CARD}').innerText.includes('hacked')")
        _photograph(page, "dark")

        server.broken = (
            503,
            {"error": "unavailable", "detail": "The database is away.", "hint": None, "request_id": "r"},
        )
        page.wait_for_selector(f"{CARD}[data-state=stale]", timeout=20_000)
        assert re.search(r"database is away.*Last values from \d+ s ago", card.inner_text(), re.S)
        card.screenshot(path=str(tmp_path / "stale.png"))
        server.broken = None
        page.wait_for_selector(f"{CARD}[data-state=live]", timeout=40_000)

        _delete_the_card(page)
        _await_silence(server)
    assert foreign == []
    assert not [frame for frame in frames if TOKEN in frame]
    assert TOKEN not in json.dumps((tmp_path / "examples" / "01-my-gpus.ipynb").read_text())


def _photograph(page: Page, theme: str) -> None:
    page.wait_for_timeout(900)  # the bars' movement; a picture in the middle of it is not wrong, only ugly
    page.locator(CARD).first.scroll_into_view_if_needed()
    IMAGES.mkdir(exist_ok=True)
    page.locator(CARD).first.screenshot(path=str(IMAGES / f"notebook-dashboard-{theme}.png"))


def _delete_the_card(page: Page) -> None:
    command(page, "notebook:clear-all-cell-outputs")
    page.wait_for_selector(CARD, state="detached")


def _await_silence(server: StandIn) -> None:
    """No question for longer than two intervals."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        before = len(server.requests)
        time.sleep(5)  # silence has no event
        if len(server.requests) == before:
            return
    raise AssertionError("the server is still asked after the card has gone")
