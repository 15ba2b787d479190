"""Kill -9 of one part after the other while a notebook runs: nothing is lost, nothing doubled."""

from __future__ import annotations

import pytest
from e2e.stack import Stack, containers, hub_page, until
from playwright.sync_api import Browser

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(900)]

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def grace(stack: Stack) -> str:
    with stack.admin() as admin:
        return admin.users.create(username="grace", password=PASSWORD).user.username


def test_notebook_survives_kill_of_server_agent_and_hub(stack: Stack, browser: Browser, grace: str) -> None:
    with stack.admin() as admin, hub_page(browser, stack, grace, PASSWORD) as user:
        user.log_in()
        user.page.goto(f"{stack.hub_url}/hub/spawn")
        user.page.fill("input[name=gpus]", "1")
        user.page.click("#spawn_form input[type=submit], #spawn_form button[type=submit]")
        user.await_lab()
        environment = next(iter(admin.environments.list(owner=grace)))
        hosts = stack.host_ids()
        running = containers(hosts)
        user.open_notebook("examples/01-my-gpus.ipynb")
        _evaluate(
            user, "survivor = 41; open('kept.txt', 'w').write('kept'); print('set', survivor)", "set 41"
        )

        for process in ("server", "agent", "hub"):
            old_pid = stack.kill(process)
            stack.await_back(process, old_pid=old_pid)
            until(
                f"the environment runs after {process} was killed",
                lambda: admin.environments.get(environment.id).status == "running",
            )
            _evaluate(user, "print('still', survivor + 1)", "still 42")

        after = admin.environments.get(environment.id)
        assert after.generation == environment.generation, "the environment was started again"
        assert after.allocated_gpus == environment.allocated_gpus
        assert containers(hosts) == running

        user.stop_default_server()
        until("the GPU is free", lambda: all(gpu.free for gpu in admin.gpus.list()))
        user.page.goto(f"{stack.hub_url}/hub/spawn")
        user.page.click("#spawn_form input[type=submit], #spawn_form button[type=submit]")
        user.await_lab()
        user.open_notebook("examples/01-my-gpus.ipynb")
        _evaluate(user, "print('file:', open('kept.txt').read())", "file: kept")
        user.stop_default_server()


def _evaluate(user, code: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    """Type `code` into a new last cell of the open notebook, run it, and wait for its output."""
    page = user.page
    page.locator(".jp-NotebookPanel:visible .jp-Cell").last.click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    cells = page.locator(".jp-NotebookPanel:visible .jp-CodeCell")
    cell = cells.nth(cells.count() - 1)  # not `last`: running it adds another one below
    cell.locator(".cm-content").click()
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")
    until(
        f"the cell prints {expected!r}", lambda: expected in cell.locator(".jp-Cell-outputArea").inner_text()
    )
