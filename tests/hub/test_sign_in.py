"""Who gets in, as what, and for how long: decided by the server, through outages too."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from hub.stack import PASSWORD, Hub, Person, Stack, until

pytestmark = [pytest.mark.hub, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def hub(make_hub: Callable[..., Hub]) -> Hub:
    return make_hub("c.Authenticator.auth_refresh_age = 1\n")


def admin_page(person: Person) -> int:
    return person.http.get("/hub/admin").status_code


def test_wrong_password_unknown_name_and_empty_form_are_refused_alike(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    with hub.browser() as person:
        answers = [person.log_in(name, "wrong") for name in (username, "nobody-at-all", "")]
        for answer in answers:
            assert answer.status_code == httpx.codes.FORBIDDEN
            assert "Invalid username or password" in answer.text


def test_too_many_failures_say_when_to_come_back(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    with hub.browser() as person:
        for _ in range(30):
            answer = person.log_in(username, "wrong")
            if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
                break
        assert "Too many failed sign-ins. Try again in" in answer.text
        refused = person.log_in(username, PASSWORD)
        assert refused.status_code == httpx.codes.TOO_MANY_REQUESTS, "the right one does not help now"


def test_user_carries_role_and_customer_into_the_hub_and_no_secret(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    with hub.signed_in(username):
        model = hub.http.get(f"/users/{username}").json()
    assert model["admin"] is False
    assert model["groups"] == ["customer-default"]


def test_promotion_and_demotion_arrive_with_the_next_refresh(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username, role="admin")
    with hub.signed_in(username) as person:
        assert admin_page(person) == httpx.codes.OK
        stack.admin.users.update(username, role="member")
        until("the admin page is closed", lambda: admin_page(person) == httpx.codes.FORBIDDEN)
        model = hub.http.get(f"/users/{username}").json()
        assert model["admin"] is False
        assert model["groups"] == ["customer-default"]
        stack.admin.users.update(username, role="admin")
        until("it is open again", lambda: admin_page(person) == httpx.codes.OK)


def test_suspended_user_is_signed_out_and_cannot_spawn(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    with hub.signed_in(username) as person:
        assert person.http.get("/hub/home").url.path == "/hub/home"
        form = person.http.get("/hub/spawn")
        stack.admin.users.suspend(username)
        until("home asks to sign in", lambda: person.http.get("/hub/home").url.path == "/hub/login")
        assert "spawn_form" in form.text
    with hub.browser() as person:
        answer = person.log_in(username, PASSWORD)
        assert answer.status_code == httpx.codes.FORBIDDEN
    refused = hub.spawn(username, image="quick", gpus=0)
    assert refused.is_client_error
    assert "suspended" in refused.json()["message"]


def test_outage_of_the_server_signs_nobody_out_and_says_that_nobody_can_sign_in(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    with hub.signed_in(username) as person, hub.browser() as late:
        stack.live.kill()
        try:
            for _ in range(3):
                assert person.http.get("/hub/home").url.path == "/hub/home"
            answer = late.log_in(username, PASSWORD)
            assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
            assert "the RemoteGPU server does not answer" in answer.text
            assert "Invalid username or password" not in answer.text
        finally:
            stack.live.start()


def test_explanation_for_somebody_else_needs_the_right_to_their_servers(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    other = stack.user(f"{username}-other")
    with hub.signed_in(other):
        pass
    with hub.signed_in(username) as person:
        own = person.http.get("/hub/remotegpu/explain", params={"image": "quick", "gpus": "1"})
        assert own.json()["outcome"] == "starts_now"
        foreign = person.http.get("/hub/remotegpu/explain", params={"image": "quick", "user": other})
        assert foreign.status_code in (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND)
    with hub.browser() as stranger:
        nobody = stranger.http.get("/hub/remotegpu/explain", params={"image": "quick"})
        assert nobody.url.path == "/hub/login"
