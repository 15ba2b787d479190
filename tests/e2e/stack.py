"""The whole product as `make up` starts it, and a browser in front of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from playwright.sync_api import Browser, Locator, Page

import remotegpu

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"

T = TypeVar("T")


def until(what: str, probe: Callable[[], T | None], *, timeout_s: float = 60, pause_s: float = 0.25) -> T:
    """The first true answer of `probe`. These tests watch real processes, so they wait on real time."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            if last := probe():
                return last
        except (httpx.HTTPError, remotegpu.RemoteGPUError, KeyError, AssertionError) as error:
            last = error
        time.sleep(pause_s)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what} (last seen: {last!r})")


@dataclass(frozen=True)
class Stack:
    """A running installation in its own data folder."""

    home: Path
    port: int

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "REMOTEGPU_HOME": str(self.home), "REMOTEGPU_PORT": str(self.port)}

    def make(self, *words: str, timeout_s: float = 900) -> str:
        done = subprocess.run(
            ["make", "--no-print-directory", *words],
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, (
            f"make {' '.join(words)} failed\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def status(self) -> dict[str, Any]:
        output = self.make("status")
        return json.loads(output[output.index("{") :])  # type: ignore[no-any-return]

    @property
    def hub_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def server_url(self) -> str:
        return f"http://127.0.0.1:{self.port + 3}"

    @property
    def admin_password(self) -> str:
        return Path(self.status()["admin"]["password_file"]).read_text().strip()

    def host_ids(self) -> set[str]:
        with self.admin() as admin:
            return {host.id for host in admin.hosts.list()}

    def admin(self) -> remotegpu.Client:
        with remotegpu.Client(url=self.server_url) as anonymous:
            token = anonymous.auth.login(username="admin", password=self.admin_password)
        return remotegpu.Client(url=self.server_url, token=token.secret)

    def kill(self, process: str) -> int:
        """Kill -9 one process of the installation, and return the pid it had."""
        pid = int(self.status()["processes"][process])
        os.kill(pid, signal.SIGKILL)
        return pid

    def await_back(self, process: str, *, old_pid: int, timeout_s: float = 60) -> None:
        def back() -> bool:
            status = self.status()
            return bool(status["ready"]) and int(status["processes"][process]) != old_pid

        until(f"{process} is back", back, timeout_s=timeout_s, pause_s=1)


def containers(host_ids: set[str]) -> set[str]:
    """Names of the containers of these hosts on the engine, running or not."""
    done = subprocess.run(
        ["docker", "ps", "-a", "--format", '{{.Names}} {{.Label "org.remotegpu.host"}}'],
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = [line.split() for line in done.stdout.splitlines()]
    return {pair[0] for pair in pairs if len(pair) == 2 and pair[1] in host_ids}


_JUPYTER = """async ([method, path, body]) => {
    const base = JSON.parse(document.getElementById('jupyter-config-data').textContent).baseUrl;
    const cookie = document.cookie.match(/_xsrf=([^;]*)/);
    const answer = await fetch(base + path, {
        method, body: body && JSON.stringify(body),
        headers: {'Content-Type': 'application/json', 'X-XSRFToken': cookie ? cookie[1] : ''},
    });
    const text = await answer.text();
    return {status: answer.status, body: text && JSON.parse(text)};
}"""
"""A request to the Jupyter server behind the page, with the person's own cookies."""


class HubUser:
    """A person in front of the hub."""

    def __init__(self, page: Page, stack: Stack, username: str, password: str) -> None:
        self.page = page
        self.stack = stack
        self.username = username
        self.password = password
        self.failures: list[str] = []
        page.on("pageerror", lambda error: self.failures.append(str(error)))

    def log_in(self) -> None:
        self.page.goto(f"{self.stack.hub_url}/hub/login")
        self.page.fill("input[name=username]", self.username)
        self.page.fill("input[name=password]", self.password)
        self.page.click("input[type=submit], button[type=submit]")
        # To the hub, or to the server where one runs.
        self.page.wait_for_url(lambda url: "/hub/login" not in url)

    def screenshot(self, name: str) -> None:
        IMAGES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=IMAGES / f"{name}.png")

    def await_lab(self, *, timeout_s: float = 120) -> None:
        self.page.wait_for_url(f"**/user/{self.username}/**/lab**", timeout=timeout_s * 1000)
        self.page.wait_for_selector("#jp-main-dock-panel", timeout=60_000)

    def open_notebook(self, path: str, server: str = "") -> None:
        prefix = f"/user/{self.username}/{server + '/' if server else ''}"
        self.page.goto(f"{self.stack.hub_url}{prefix}lab/tree/{path}")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
        # The kernel has to be there: a cell that is run before asks which kernel to take.
        self.page.wait_for_selector("#jp-main-statusbar >> text=/[|] Idle/", timeout=60_000)

    def stop_default_server(self) -> None:
        self.page.goto(f"{self.stack.hub_url}/hub/home")
        # The hub's script comes after the page: a click before it is lost.
        self.page.wait_for_function(
            "() => window.require?.defined('jquery')"
            " && require('jquery')._data(document.getElementById('stop'), 'events')?.click"
        )
        self.page.click("#stop")
        self.page.wait_for_selector("#stop", state="hidden", timeout=60_000)

    def run_cells(self) -> list[str]:
        """Run every code cell, one by one with Shift+Enter, and return the text of each output."""
        cells = self.page.locator(".jp-NotebookPanel:visible .jp-CodeCell")
        return [self.run_cell(number) for number in range(cells.count())]

    def run_cell(self, number: int) -> str:
        cell = self.start_cell(number)
        prompt = cell.locator(".jp-InputArea-prompt")
        until("the cell has run", lambda: prompt.inner_text().strip().strip("[]:").isdigit(), timeout_s=60)
        return cell.locator(".jp-Cell-outputArea").inner_text()

    def start_cell(self, number: int) -> Locator:
        """Run a code cell with Shift+Enter, and do not wait for it."""
        cell = self.page.locator(".jp-NotebookPanel:visible .jp-CodeCell").nth(number)
        cell.scroll_into_view_if_needed()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")
        return cell

    def write_notebook(self, path: str, *cells: str) -> None:
        """Put a notebook with these code cells where JupyterLab, which is open, keeps its files."""
        code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        content = {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {"kernelspec": kernel},
            "cells": [{**code, "id": f"cell-{number}", "source": one} for number, one in enumerate(cells)],
        }
        body = {"type": "notebook", "format": "json", "content": content}
        assert self._jupyter("PUT", f"api/contents/{path}", body) < 300

    def end_kernels(self) -> None:
        """Shut down what the notebooks of the open JupyterLab run on, as closing them for good does."""
        for session in self.page.evaluate(_JUPYTER, ["GET", "api/sessions", None])["body"]:
            assert self._jupyter("DELETE", f"api/sessions/{session['id']}", None) < 300

    def _jupyter(self, method: str, path: str, body: object) -> int:
        return int(self.page.evaluate(_JUPYTER, [method, path, body])["status"])


@contextmanager
def hub_page(browser: Browser, stack: Stack, username: str, password: str) -> Iterator[HubUser]:
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    try:
        yield HubUser(page, stack, username, password)
    except BaseException:
        page.screenshot(path=stack.home / "failed.png", full_page=True)
        (stack.home / "failed.html").write_text(page.content())
        raise
    finally:
        context.close()
