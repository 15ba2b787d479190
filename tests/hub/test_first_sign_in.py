"""A one-time password is changed at the hub, and the identity provider's button ends signed in at the hub."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from hub.browsing import log_in, photograph, window
from hub.stack import Hub, Stack, until, xsrf_of
from oidc_provider import CLIENT, SECRET, Provider
from playwright.sync_api import Browser, Page, expect

pytestmark = [pytest.mark.hub, pytest.mark.timeout(180)]

OWN = "staple battery horse"


def fill_passwords(page: Page, *, present: str, new: str, again: str | None = None) -> None:
    page.get_by_label("One-time password").fill(present)
    page.get_by_label("New password", exact=True).fill(new)
    page.get_by_label("New password again").fill(new if again is None else again)
    page.get_by_role("button", name="Set it and sign in").click()


@pytest.mark.browser
def test_one_time_password_is_changed_at_the_hubs_login_and_goes_where_the_login_would(
    hub: Hub, stack: Stack, browser: Browser, username: str
) -> None:
    once = stack.admin.users.create(username=username).one_time_password
    assert once is not None
    with window(browser) as page:
        page.goto(f"{hub.url}/hub/spawn")
        page.fill("#username_input", username)
        page.fill("#password_input", once)
        page.press("#password_input", "Enter")
        expect(page.get_by_role("heading", name="Set a password of your own")).to_be_visible()
        expect(page.get_by_label("Username")).to_have_value(username)
        photograph(page, "password")
        fill_passwords(page, present=once, new=OWN, again="another")
        expect(page.get_by_role("alert")).to_have_text("The two new passwords differ.")
        fill_passwords(page, present="not the one", new=OWN)
        expect(page.get_by_role("alert")).to_have_text("Invalid username or password.")
        fill_passwords(page, present=once, new="short")
        expect(page.get_by_role("alert")).to_have_text("The new password needs 10 to 256 characters.")
        photograph(page, "password-refused")
        fill_passwords(page, present=once, new=OWN)
        page.wait_for_url(f"{hub.url}/hub/spawn")
        expect(page.locator("#remotegpu-form")).to_be_visible()
    with window(browser) as page:
        log_in(page, hub, username, OWN)
    with hub.browser() as person:
        assert person.log_in(username, once).status_code == httpx.codes.FORBIDDEN


def test_password_page_refuses_a_post_from_elsewhere_and_changes_nothing(
    hub: Hub, stack: Stack, username: str
) -> None:
    once = stack.admin.users.create(username=username).one_time_password
    fields = {
        "username": username, "password": once, "new_password": OWN, "new_password_again": OWN,
    }  # fmt: skip
    with hub.browser() as person:
        refused = person.http.post("/hub/remotegpu/password", data=fields)
        assert refused.status_code == httpx.codes.FORBIDDEN
        page = person.log_in(username, str(once))
        assert page.url.path == "/hub/remotegpu/password"
        assert str(once) not in page.text
        fields["_xsrf"] = xsrf_of(page.text)
        done = person.http.post("/hub/remotegpu/password?next=https://evil.example.org/", data=fields)
        assert done.url.host == "127.0.0.1", "only addresses of this hub are gone to"
        assert person.http.get("/hub/home").url.path == "/hub/home"


@pytest.fixture(scope="module")
def asking(make_hub: Callable[..., Hub]) -> Hub:
    """A hub that has not asked yet how people sign in: it asks once a minute."""
    return make_hub()


@pytest.fixture
def provider(asking: Hub, stack: Stack, tmp_path: Path) -> Iterator[Provider]:
    """A provider that the server knows, and at which everybody is signed in already."""
    made = Provider(back=f"{asking.url}/hub/remotegpu/oidc/return")
    server = uvicorn.Server(uvicorn.Config(made.app(), port=0, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until("the provider listens", lambda: server.started)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    secret = tmp_path / "client-secret"
    secret.write_text(SECRET)
    stack.live.stop()
    stack.live.start(
        REMOTEGPU_OIDC_ISSUER=made.url,
        REMOTEGPU_OIDC_CLIENT_ID=CLIENT,
        REMOTEGPU_OIDC_CLIENT_SECRET_FILE=str(secret),
        REMOTEGPU_OIDC_REDIRECT_URI=made.back,
        REMOTEGPU_OIDC_CUSTOMER="default",
    )
    yield made
    stack.live.stop()
    stack.live.start()
    server.should_exit = True
    thread.join(20)


@pytest.mark.browser
def test_button_of_the_identity_provider_ends_signed_in_at_the_hub(
    provider: Provider, asking: Hub, stack: Stack, browser: Browser, username: str
) -> None:
    provider.claims = {"preferred_username": username, "sub": username, "name": "Ada Lovelace"}
    with window(browser) as page:
        page.goto(f"{asking.url}/hub/login?next=%2Fhub%2Fspawn")
        button = page.get_by_role("link", name="Sign in with 127.0.0.1")
        expect(button).to_be_visible()
        photograph(page, "login")
        button.click()
        page.wait_for_url(f"{asking.url}/hub/spawn")
        expect(page.locator("#remotegpu-form")).to_be_visible()
    user = stack.admin.users.get(username)
    assert (user.display_name, user.customer_name) == ("Ada Lovelace", "default")
    assert not list(stack.admin.users.tokens(username)), "the hub keeps no session"


def test_return_from_the_provider_counts_only_in_the_browser_that_went_there(
    provider: Provider, asking: Hub, stack: Stack, username: str
) -> None:
    provider.claims = {"preferred_username": username, "sub": username}
    with asking.browser() as person, asking.browser() as victim:
        person.http.follow_redirects = False
        there = person.http.get("/hub/remotegpu/oidc")
        cookie = there.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        back = httpx.get(there.headers["location"]).headers["location"]
        stolen = victim.http.get(back)
        assert stolen.status_code == httpx.codes.FORBIDDEN
        assert "was not started in this browser" in stolen.text
        assert victim.http.get("/hub/home").url.path == "/hub/login"
        denied = person.http.get(back.partition("&code")[0])
        assert denied.status_code == httpx.codes.FORBIDDEN
        assert "did not let you in" in denied.text
        again = person.http.get(back)
        assert again.status_code == httpx.codes.FORBIDDEN, "the cookie was spent"
    assert username not in [user.username for user in stack.admin.users.list()]


def test_suspended_user_of_the_provider_is_told_so(
    provider: Provider, asking: Hub, stack: Stack, username: str
) -> None:
    provider.claims = {"preferred_username": username, "sub": username}
    with asking.browser() as person:
        assert person.http.get("/hub/remotegpu/oidc?next=/hub/home").url.path == "/hub/home"
    stack.admin.users.suspend(username)
    with asking.browser() as person:
        refused = person.http.get("/hub/remotegpu/oidc")
        assert refused.status_code == httpx.codes.FORBIDDEN
        assert "This account is suspended" in refused.text
