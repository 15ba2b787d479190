"""Form and waiting page as a person uses them, in a real browser: models, shares, MIG, counter-offers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hub.browsing import photograph, signed_in
from hub.stack import Hub, Stack, until
from playwright.sync_api import Browser, Page, expect

pytestmark = [pytest.mark.hub, pytest.mark.browser, pytest.mark.timeout(180)]

GIB = 2**30
STRICT = """
c.JupyterHub.tornado_settings = {"headers": {"Content-Security-Policy":
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "script-src 'self' 'nonce-none'; frame-ancestors 'none'"}}
"""
"""No inline script runs, not even the hub's own."""


@pytest.fixture(scope="module")
def simulated_gpus() -> str:
    return "2xA100-80GB,1xH100-80GB,1xL40-48GB/2x1g.12gb"


def open_form(page: Page, hub: Hub) -> None:
    page.goto(f"{hub.url}/hub/spawn")
    page.get_by_label("Image").select_option("quick")


def test_form_starts_a_soft_share_of_one_of_several_models(
    hub: Hub, stack: Stack, browser: Browser, username: str
) -> None:
    stack.user(username, gpus=2)
    with signed_in(browser, hub, username) as page:
        open_form(page, hub)
        expect(page.locator("#rgpu-outcome-text")).to_contain_text("Would start now on gpu-host")
        photograph(page, "form")
        page.get_by_label("A100-80GB").check()
        page.get_by_label("H100-80GB").check()
        expect(page.get_by_label("Share of the GPU's memory")).to_be_hidden()
        page.get_by_label("A soft share").check()
        expect(page.get_by_label("How many")).to_be_hidden()
        page.get_by_label("Share of the GPU's memory").fill("20")
        expect(page.locator("#rgpu-share-note")).to_contain_text("the largest that is free now is 80 GiB")
        photograph(page, "form-share")
        page.get_by_role("button", name="Start", exact=True).click()
        hub.await_ready(username)
    environment = stack.environment(username)
    assert environment is not None
    assert environment.gpu_models == ["A100-80GB", "H100-80GB"]
    assert environment.gpu_memory_bytes == 20 * GIB
    assert hub.server(username)["user_options"]["profile"] == "20 GiB of A100-80GB|H100-80GB / quick"


def test_form_starts_a_mig_instance_with_the_keyboard_alone_in_a_workspace(
    hub: Hub, stack: Stack, browser: Browser, username: str
) -> None:
    stack.user(username)
    team = stack.admin.workspaces.create(name=f"team-{username}")
    stack.admin.workspaces.add_member(team.id, user=username, role="member")
    with signed_in(browser, hub, username) as page:
        open_form(page, hub)
        page.get_by_label("Workspace").select_option(label=team.name)
        page.get_by_label("Whole GPUs").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        expect(page.get_by_label("MIG instances")).to_be_checked()
        expect(page.get_by_label("MIG profile")).to_contain_text(
            "1g.12gb – 2 of 2 free, simulated (L40-48GB)"  # noqa: RUF001
        )
        expect(page.locator("#rgpu-outcome-text")).to_contain_text("Would start now")
        photograph(page, "form-mig")
        page.get_by_label("How many").focus()
        page.keyboard.press("Enter")
        hub.await_ready(username)
        environment = stack.environment(username)
        assert environment is not None
        assert [one.mig_profile for one in environment.allocated_gpus] == ["1g.12gb"]
        assert environment.workspace_id == team.id
        hub.delete(username)
        hub.await_stopped(username)
        open_form(page, hub)
        expect(page.locator("#remotegpu-form")).to_contain_text(f"Workspace: {team.name}. A server stays")


def test_form_works_where_inline_scripts_are_forbidden(
    make_hub: Callable[..., Hub], stack: Stack, browser: Browser, username: str
) -> None:
    strict = make_hub(STRICT)
    stack.user(username, gpus=1)
    with signed_in(browser, strict, username) as page:
        open_form(page, strict)
        page.get_by_label("How many").fill("2")
        expect(page.locator("#rgpu-outcome-title")).to_have_text("Would be refused.")
        page.get_by_label("How many").fill("1")
        expect(page.locator("#rgpu-outcome-text")).to_contain_text("Would start now on gpu-host")


def test_click_on_a_counter_offer_of_the_form_starts_the_smaller_thing_at_once(
    hub: Hub, stack: Stack, browser: Browser, username: str
) -> None:
    holder, person = stack.user(f"{username}-holder"), stack.user(username)
    hub.spawn(holder, image="quick", gpus=1, gpu_models=["A100-80GB"])
    hub.await_ready(holder)
    with signed_in(browser, hub, person) as page:
        open_form(page, hub)
        page.get_by_label("A100-80GB").check()
        page.get_by_label("How many").fill("2")
        expect(page.locator("#rgpu-outcome-title")).to_have_text("Would wait.")
        expect(page.locator("#rgpu-outcome-text")).to_contain_text("Position 1 in the queue")
        offer = page.get_by_role("button", name="With 1 A100-80GB GPU it starts now")
        photograph(page, "form-full")
        offer.click()
        hub.await_ready(person)
    environment = stack.environment(person)
    assert environment is not None
    assert (environment.gpus, environment.gpu_models) == (1, ["A100-80GB"])
    until("it runs", lambda: (one := stack.environment(person)) and one.status == "running")


def test_full_fleet_says_why_and_how_long_and_a_click_starts_the_smaller_thing_at_once(
    hub: Hub, stack: Stack, browser: Browser, username: str
) -> None:
    holder, person = stack.user(f"{username}-holder"), stack.user(username)
    with stack.client(holder) as client:
        client.environments.create(
            name="train", image="quick", gpus=1, gpu_models=["A100-80GB"], max_lifetime_s=3600
        )
    until("it holds a GPU", lambda: (one := stack.environment(holder, "train")) and one.started_at)
    with signed_in(browser, hub, person) as page:
        open_form(page, hub)
        page.get_by_label("A100-80GB").check()
        page.get_by_label("How many").fill("2")
        page.get_by_role("button", name="Start", exact=True).click()
        wait = page.locator("#rgpu-wait")
        expect(wait).to_contain_text("Waiting at position 1.")
        expect(wait).to_contain_text("2 A100-80GB GPUs on one host wanted; 1 free in all")
        expect(wait).to_contain_text("Start likely")
        offer = page.get_by_role("button", name="With 1 A100-80GB GPU it starts now on gpu-host.")
        expect(offer).to_be_visible()
        photograph(page, "pending-full")
        waiting = stack.environment(person)
        assert waiting is not None
        assert (waiting.status, waiting.gpus) == ("pending", 2)
        offer.focus()
        page.keyboard.press("Enter")
        page.wait_for_url(f"{hub.url}/user/{person}/**")
    environment = stack.environment(person)
    assert environment is not None
    assert environment.id == waiting.id
    assert (environment.status, environment.gpus, environment.gpu_models) == ("running", 1, ["A100-80GB"])
    assert hub.server(person)["user_options"]["gpus"] == 1
