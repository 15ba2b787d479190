"""A notebook that waits longer than the hub holds keeps its place, and starts without another click."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hub.stack import PLAIN, Hub, Stack, until

pytestmark = [pytest.mark.hub, pytest.mark.timeout(240)]


@pytest.fixture
def hub(stack: Stack, make_hub: Callable[..., Hub], tmp_path: Path) -> Iterator[Hub]:
    """A hub that holds a start for two seconds, and a server that may start its servers."""
    token = tmp_path / "hub-start-token"
    token.write_text("a-token-for-starts-0123456789abcdef\n")
    named = f"import os\nos.environ['REMOTEGPU_HUB_API_TOKEN_FILE'] = {str(token)!r}\n"
    made = make_hub("c.RemoteGPUSpawner.queue_wait = 2\n", plain=named + PLAIN)
    stack.live.stop()
    stack.live.start(REMOTEGPU_HUB_API_URL=f"{made.api_url}/hub/api", REMOTEGPU_HUB_API_TOKEN_FILE=str(token))
    yield made
    stack.live.stop()
    stack.live.start()


def test_full_fleet_keeps_the_place_and_starts_without_another_click(
    hub: Hub, stack: Stack, username: str
) -> None:
    holder, person = stack.user(f"{username}-holder"), stack.user(username)
    hub.spawn(holder, image="quick", gpus=2)
    hub.await_ready(holder)
    answer = hub.spawn(person, image="quick", gpus=1)
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert answer.json()["message"].startswith("Your place is kept: position 1")
    kept = until("the place is kept", lambda: _kept(stack, person))
    assert kept.queue_position == 1
    until("the hub has ended the start", lambda: not hub.server(person).get("pending"))
    assert not hub.server(person).get("ready")
    with hub.signed_in(person) as browser:
        answer = browser.http.get(
            "/hub/remotegpu/explain", params={"image": "quick", "gpus": "2", "gpu_model": ""}
        ).json()
        assert answer["outcome"] == "waits"
        assert answer["prospects"]
        assert "Your place is kept: position 1" in browser.http.get("/hub/spawn").text
    assert _kept(stack, person), "the end of the start did not give the place up"

    hub.delete(holder)
    hub.await_ready(person)
    environment = stack.environment(person)
    assert environment is not None
    assert environment.id == kept.id
    assert environment.status == "running"


def test_hub_that_is_down_when_the_turn_comes_starts_the_server_when_it_is_back(
    hub: Hub, stack: Stack, username: str
) -> None:
    holder, person = stack.user(f"{username}-holder"), stack.user(username)
    with stack.client(holder) as client:
        held = client.environments.create(name="train", image="quick", gpus=2)
    hub.spawn(person, image="quick", gpus=1)
    until("the place is kept", lambda: _kept(stack, person))
    hub.process.kill()
    stack.admin.environments.stop(held.id)
    until("its turn has come", lambda: (one := _kept(stack, person)) and one.reason == "hub_start")
    hub.start()
    hub.await_ready(person)


def _kept(stack: Stack, person: str):  # type: ignore[no-untyped-def]
    found = stack.environment(person)
    return found if found is not None and found.wait is not None and found.wait.place_kept else None
