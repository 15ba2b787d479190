"""Kill -9 of the hub and outages of the server: nothing is lost, and nothing is held for ever."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from hub.stack import Hub, Stack, until

pytestmark = [pytest.mark.hub, pytest.mark.timeout(240)]

# The hub looks after its routes rarely; a test cannot wait for that.
OFTEN = "c.JupyterHub.last_activity_interval = 2\nc.Spawner.poll_interval = 1\n"


@pytest.fixture(scope="module")
def hub(make_hub: Callable[..., Hub]) -> Hub:
    return make_hub(OFTEN + "c.RemoteGPUSpawner.stop_wait = 3\n")


def notebook(hub: Hub, user: str) -> dict[str, dict[str, str]]:
    answer = httpx.get(f"{hub.url}/user/{user}/api")
    return answer.json() if answer.is_success else {}


def token_works(hub: Hub, token: str) -> bool:
    answer = httpx.get(f"{hub.api_url}/hub/api/user", headers={"Authorization": f"token {token}"})
    return answer.is_success


def test_hub_killed_while_a_server_runs_adopts_it_and_its_token_dies_with_the_stop(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    hub.spawn(username, image="quick", gpus=1)
    hub.await_ready(username)
    before = stack.environment(username)
    token = notebook(hub, username)["environ"]["JUPYTERHUB_API_TOKEN"]
    assert token_works(hub, token)

    hub.process.kill()
    assert notebook(hub, username), "the proxy serves it meanwhile"
    hub.start()
    hub.await_ready(username)
    after = stack.environment(username)
    assert before is not None
    assert after is not None
    assert (after.id, after.generation, after.status) == (before.id, before.generation, "running")
    assert hub.server(username)["state"]["environment_id"] == before.id
    assert token_works(hub, token)

    hub.delete(username)
    hub.await_stopped(username)
    until("the GPU is free", lambda: stack.gpus_free() == 2)
    assert not token_works(hub, token)


def test_restart_through_the_api_keeps_the_hubs_server_and_moves_its_route(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    hub.spawn(username, image="quick", gpus=1)
    hub.await_ready(username)
    before = stack.environment(username)
    assert before is not None
    assert before.address is not None
    restarted = stack.admin.environments.restart(before.id)
    assert restarted.generation == before.generation + 1
    after = stack.admin.environments.wait_ready(before.id, timeout_s=60, progress=False)
    assert [gpu.uuid for gpu in after.allocated_gpus] == [gpu.uuid for gpu in before.allocated_gpus]
    assert after.address != before.address, "or this test shows nothing"
    until("the route leads to the new one", lambda: notebook(hub, username), timeout_s=20)
    assert hub.server(username)["ready"]
    hub.delete(username)
    hub.await_stopped(username)
    until("the GPU is free", lambda: stack.gpus_free() == 2)


def test_hub_killed_while_a_server_starts_adopts_it(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    hub.http.post(f"/users/{username}")
    with hub.signed_in(username) as person:
        person.send_form("/hub/spawn", image="slow", gpus="1", cpus="1", memory_gib="1")
    until("it is placed", lambda: stack.gpus_free() == 1)
    hub.process.kill()
    hub.start()
    hub.await_ready(username)
    environment = stack.environment(username)
    assert environment is not None
    assert (environment.status, environment.generation) == ("running", 1)
    until("the route is there", lambda: notebook(hub, username))
    hub.delete(username)
    hub.await_stopped(username)
    until("the GPU is free", lambda: stack.gpus_free() == 2)


def test_server_that_ended_while_the_hub_was_dead_is_forgotten_with_its_token(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    hub.spawn(username, image="quick", gpus=1)
    hub.await_ready(username)
    token = notebook(hub, username)["environ"]["JUPYTERHUB_API_TOKEN"]
    hub.process.kill()
    stack.stop_all()
    hub.start()
    hub.await_stopped(username)
    until("the token is dead", lambda: not token_works(hub, token))


def test_hub_restarted_while_the_server_is_down_keeps_what_runs(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    hub.spawn(username, image="quick", gpus=1)
    hub.await_ready(username)
    url = hub.server(username)["url"]
    stack.live.kill()
    try:
        hub.process.kill()
        hub.start()
        hub.await_ready(username)
        assert notebook(hub, username)
        assert hub.server(username)["url"] == url
    finally:
        stack.live.start()
    environment = stack.environment(username)
    assert environment is not None
    assert environment.status == "running"
    hub.delete(username)
    hub.await_stopped(username)
    until("the GPU is free", lambda: stack.gpus_free() == 2)


def test_stop_while_the_server_is_down_ends_in_a_release(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    hub.spawn(username, image="quick", gpus=1)
    hub.await_ready(username)
    stack.live.kill()
    try:
        hub.delete(username)
        hub.await_stopped(username, timeout_s=90)
    finally:
        stack.live.start()
    until("the GPU is free", lambda: stack.gpus_free() == 2, timeout_s=60)


def test_start_while_the_server_is_down_says_so(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    hub.http.post(f"/users/{username}")
    with hub.signed_in(username) as person:
        stack.live.kill()
        try:
            form = person.http.get("/hub/spawn")
            assert "server does not answer" in form.text
            refused = hub.spawn(username, image="quick", gpus=1)
            if refused.status_code == httpx.codes.ACCEPTED:
                message = hub.events(username)[-1]["message"]
            else:
                message = refused.json()["message"]
            assert "does not answer" in message
            assert "Try again" in message
        finally:
            stack.live.start()
    hub.await_stopped(username)
