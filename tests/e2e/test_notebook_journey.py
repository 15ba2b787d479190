"""A data scientist's first hour, in a real browser, on the installation that `make up` made."""

from __future__ import annotations

import pytest
from e2e.stack import HubUser, Stack, containers, hub_page, until
from playwright.sync_api import Browser

import remotegpu

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(900)]

PASSWORD = "correct horse battery"
CARD = ".remotegpu-dashboard"


@pytest.fixture(scope="module")
def ada(stack: Stack) -> str:
    """A user who may hold one GPU."""
    with stack.admin() as admin:
        user = admin.users.create(username="ada", password=PASSWORD).user
        admin.quotas.set("user", user.id, limits={"gpus": 1})
    return user.username


def test_first_notebook_from_login_to_freed_gpu(stack: Stack, browser: Browser, ada: str) -> None:
    with stack.admin() as admin, hub_page(browser, stack, ada, PASSWORD) as user:
        user.log_in()
        _choose_one_gpu(user)
        user.screenshot("spawn-form")
        user.page.click("#spawn_form input[type=submit], #spawn_form button[type=submit]")
        user.page.wait_for_selector("#progress-message, #jp-main-dock-panel", timeout=30_000)
        if "spawn-pending" in user.page.url:
            user.screenshot("spawn-progress")
        user.await_lab()

        environment = next(iter(admin.environments.list(owner=ada)))
        assert environment.status == "running"
        assert len(environment.allocated_gpus) == 1

        user.open_notebook("examples/01-my-gpus.ipynb")
        outputs = user.run_cells()
        assert not [text for text in outputs if "Traceback" in text], outputs
        card = user.page.locator(CARD).first
        card.wait_for(timeout=30_000)
        card.scroll_into_view_if_needed()
        gpu = environment.allocated_gpus[0]
        until("the card shows the GPU of this environment", lambda: gpu.model in card.inner_text())
        assert "simulated" in card.inner_text().lower() or not gpu.simulated
        until("the card has a history", lambda: "last" in card.inner_text())
        user.screenshot("notebook-my-gpus")

        _second_server_is_refused(user)
        user.stop_default_server()
        until("the GPU is free again", lambda: all(gpu.free for gpu in admin.gpus.list()))
        stopped = admin.environments.get(environment.id)
        assert stopped.status == "stopped"
        assert stopped.allocated_gpus == []
        assert containers(stack.host_ids()) == set(), "a container was left behind"
        assert user.failures == []


def _choose_one_gpu(user: HubUser) -> None:
    user.page.goto(f"{user.stack.hub_url}/hub/spawn")
    user.page.wait_for_selector("#spawn_form")
    user.page.fill("input[name=gpus]", "1")
    form = user.page.locator("#spawn_form")
    until("the form says that it would start now", lambda: "start now" in form.inner_text().lower())
    assert "free" in form.inner_text().lower()


def _second_server_is_refused(user: HubUser) -> None:
    user.page.goto(f"{user.stack.hub_url}/hub/spawn/{user.username}/second")
    user.page.wait_for_selector("#spawn_form")
    user.page.fill("input[name=gpus]", "1")
    form = user.page.locator("#spawn_form")
    until("the form says that the quota is used up", lambda: "quota" in form.inner_text().lower())
    user.page.click("#spawn_form input[type=submit], #spawn_form button[type=submit]")
    until(
        "the refusal names the limit",
        lambda: "quota" in user.page.inner_text("body").lower() and "1" in user.page.inner_text("body"),
    )
    user.screenshot("quota-refusal")


def test_no_live_token_of_the_environment_is_left(stack: Stack, ada: str) -> None:
    """The workload's token died with it: the last test stopped the only environment."""
    with stack.admin() as admin:
        for environment in admin.environments.list(owner=ada):
            assert environment.status in {"stopped", "failed"}
    identity_free = remotegpu.Client(url=stack.server_url, token="rgw_doesnotexist_" + "x" * 43)
    with identity_free, pytest.raises(remotegpu.TokenInvalid):
        identity_free.me.get()
