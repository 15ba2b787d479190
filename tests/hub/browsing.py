"""The hub's pages in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hub.stack import PASSWORD, Hub
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
SCREENSHOTS = os.environ.get("REMOTEGPU_TEST_SCREENSHOTS")
"""A folder for pictures of the pages, in both themes; unset: none are taken."""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@contextmanager
def window(browser: Browser) -> Iterator[Page]:
    """A browser of somebody who was never here. Errors of scripts fail the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 1250})
    page = context.new_page()
    page.set_default_timeout(15_000)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    assert failures == []
    context.close()


def log_in(page: Page, hub: Hub, username: str, password: str = PASSWORD) -> None:
    page.goto(f"{hub.url}/hub/login")
    page.fill("#username_input", username)
    page.fill("#password_input", password)
    page.press("#password_input", "Enter")
    page.wait_for_url(lambda url: "/hub/login" not in url)


@contextmanager
def signed_in(browser: Browser, hub: Hub, username: str) -> Iterator[Page]:
    """A window of this user."""
    with window(browser) as page:
        log_in(page, hub, username)
        yield page


def photograph(page: Page, name: str) -> None:
    """A picture in each theme, where somebody wants them."""
    if not SCREENSHOTS:
        return
    for theme in ("light", "dark"):
        page.evaluate("theme => document.documentElement.setAttribute('data-bs-theme', theme)", theme)
        page.screenshot(path=f"{SCREENSHOTS}/{name}-{theme}.png", full_page=True, animations="disabled")
