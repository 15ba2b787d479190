"""Starting, refusing, stopping: through REST, the form and the progress page."""

from __future__ import annotations

import time

import httpx
import pytest
from bs4 import BeautifulSoup
from hub.stack import Hub, Stack, until

pytestmark = [pytest.mark.hub, pytest.mark.timeout(180)]


def text_of(answer: httpx.Response) -> str:
    return " ".join(BeautifulSoup(answer.text, "html.parser").get_text(" ").split())


def test_spawn_through_rest_gives_a_gpu_and_stop_frees_it(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    free = stack.gpus_free()
    assert hub.spawn(username, image="quick", gpus=1).status_code in (201, 202)
    model = hub.await_ready(username)
    environment = stack.environment(username)
    assert environment is not None
    assert len(environment.allocated_gpus) == 1
    assert model["user_options"]["profile"] == "1x GPU / quick"
    assert model["state"]["environment_id"] == environment.id
    shown = httpx.get(f"{hub.url}/user/{username}/api").json()
    assert shown["environ"]["JUPYTERHUB_USER"] == username
    assert shown["environ"]["REMOTEGPU_SIMULATED_GPUS"] == environment.allocated_gpus[0].uuid
    assert shown["environ"]["MEM_LIMIT"] == str(2 * 2**30)

    assert hub.delete(username).status_code in (202, 204)
    hub.await_stopped(username)
    assert until("the GPU is free", lambda: stack.gpus_free() == free)
    stopped = stack.environment(username)
    assert stopped is not None
    assert stopped.status == "stopped"


def test_started_again_environment_is_the_same_one(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    ids = set()
    for generation in (1, 2):
        hub.spawn(username, image="quick", gpus=0)
        hub.await_ready(username)
        environment = stack.environment(username)
        assert environment is not None
        assert environment.generation == generation
        ids.add(environment.id)
        hub.delete(username)
        hub.await_stopped(username)
    assert len(ids) == 1


def test_form_start_shows_real_progress_and_lands_on_the_server(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username, gpus=1)
    with hub.signed_in(username) as person:
        form = person.http.get("/hub/spawn")
        assert "A100-80GB – 2 of 2 free, simulated" in form.text  # noqa: RUF001
        assert "0 of 1 used" in text_of(form)
        sent = person.send_form("/hub/spawn", image="slow", gpu_models="", gpus="1", cpus="1", memory_gib="1")
        assert "spawn-pending" in sent.url.path, text_of(sent)
        assert "stop_named_server" in sent.text
    events = hub.events(username)
    messages = [event["message"] for event in events]
    assert any("gpu-host" in message for message in messages), messages
    assert events[-1]["ready"]
    assert [event["progress"] for event in events] == sorted(event["progress"] for event in events)
    assert hub.server(username)["user_options"]["image"] == "slow"
    hub.delete(username)
    hub.await_stopped(username)


def test_refusal_reads_the_same_in_rest_form_progress_and_page(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username, gpus=1)
    refused = hub.spawn(username, image="quick", gpus=2)
    assert refused.status_code == httpx.codes.FORBIDDEN
    message = refused.json()["message"]
    assert "may hold 1 GPU at once" in message
    assert "Ask for" in message
    with hub.signed_in(username) as person:
        person.send_form("/hub/spawn", image="quick", gpus="2", cpus="1", memory_gib="1")
        page = person.http.get(f"/hub/spawn-pending/{username}")
        while "is starting up" in text_of(page):
            time.sleep(0.2)
            page = person.http.get(f"/hub/spawn-pending/{username}")
        assert message in text_of(page)
        answer = person.http.get("/hub/remotegpu/explain", params={"image": "quick", "gpus": "2"}).json()
        assert answer["outcome"] == "refused"
        assert answer["message"] == message
    event = hub.events(username)[-1]
    assert event["failed"]
    assert message in event["message"]
    assert stack.environment(username) is None
    assert stack.gpus_free() == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image": "evil.example.org/miner:latest"}, "evil.example.org/miner:latest"),
        ({"image": "quick", "volumes": {"/": "/host"}}, "volumes"),
        ({"image": "quick", "gpus": "many"}, "gpus"),
        ({"image": "quick", "gpus": -1}, "gpus"),
        ({"image": "quick", "memory_gib": 1e9}, "memory"),
        ({"image": "quick", "gpus": 3}, "3 GPUs"),
        ({"image": "quick", "gpus": 1, "gpu_models": ["Abacus"]}, "Abacus"),
        ({"image": ["quick"]}, "image"),
    ],
)
def test_rest_options_that_may_not_run_are_refused_readably(
    hub: Hub, stack: Stack, username: str, options: dict[str, object], named: str
) -> None:
    stack.user(username)
    refused = hub.spawn(username, **options)
    assert refused.is_client_error, refused.text
    assert named.lower() in refused.json()["message"].lower()
    assert not hub.server(username).get("ready")
    assert stack.environment(username) is None


@pytest.mark.parametrize("query", ["", "?opt-image=quick", "?utm_source=mail", "?image=quick&gpus=1"])
def test_link_to_spawn_starts_nothing(hub: Hub, stack: Stack, username: str, query: str) -> None:
    stack.user(username)
    with hub.signed_in(username) as person:
        page = person.http.get(f"/hub/spawn{query}")
        assert "spawn_form" in page.text
        assert ("A link cannot start a server" in page.text) == bool(query)
    assert not hub.server(username).get("pending")
    assert stack.environment(username) is None


def test_cancelled_start_frees_its_gpu(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    hub.http.post(f"/users/{username}")
    with hub.signed_in(username) as person:
        person.send_form("/hub/spawn", image="never", gpus="1", cpus="1", memory_gib="1")
    until("it is placed", lambda: stack.gpus_free() == 1)
    assert hub.delete(username).status_code in (202, 204)
    hub.await_stopped(username)
    until("the GPU is free", lambda: stack.gpus_free() == 2)
    environment = stack.environment(username)
    assert environment is not None
    assert environment.status == "stopped"


def test_start_that_waits_for_a_gpu_says_so_and_begins_when_one_is_free(
    hub: Hub, stack: Stack, username: str
) -> None:
    holder, waiter = stack.user(f"{username}-a"), stack.user(f"{username}-b")
    hub.spawn(holder, image="quick", gpus=2)
    hub.await_ready(holder)
    with hub.signed_in(waiter) as person:
        answer = person.http.get("/hub/remotegpu/explain", params={"image": "quick", "gpus": "1"}).json()
        assert answer["outcome"] == "waits"
        assert "position 1" in answer["message"].lower()
        person.send_form("/hub/spawn", image="quick", gpus="1", cpus="1", memory_gib="1")
    until("it waits", lambda: (one := stack.environment(waiter)) and one.status == "pending")
    hub.delete(holder)
    hub.await_ready(waiter)
    hub.delete(waiter)
    hub.await_stopped(waiter)


def test_something_else_is_asked_for_by_the_user_alone_and_only_while_the_start_waits(
    hub: Hub, stack: Stack, username: str
) -> None:
    holder, waiter = stack.user(f"{username}-a"), stack.user(f"{username}-b")
    hub.spawn(holder, image="quick", gpus=1)
    hub.await_ready(holder)
    body = {"fields": {"gpus": ["1"]}}
    with hub.signed_in(waiter) as person, hub.signed_in(holder) as stranger:
        token = {"X-XSRFToken": person.xsrf_token()}
        early = person.http.post("/hub/remotegpu/wait", json=body, headers=token)
        assert (early.status_code, early.json()["message"]) == (409, "It does not wait any more.")
        person.send_form("/hub/spawn", image="quick", gpus="2", cpus="1", memory_gib="1")
        until("it waits", lambda: person.http.get("/hub/remotegpu/wait").json()["waits"])
        assert person.http.post("/hub/remotegpu/wait", json=body).status_code == httpx.codes.FORBIDDEN
        theirs = {"X-XSRFToken": stranger.xsrf_token()}
        foreign = stranger.http.post(f"/hub/remotegpu/wait?user={waiter}", json=body, headers=theirs)
        assert foreign.status_code in (403, 404)
        odd = person.http.post("/hub/remotegpu/wait", json={"fields": {"gpus": ["many"]}}, headers=token)
        assert (odd.status_code, odd.json()["message"][:4]) == (400, "gpus")
        assert person.http.post("/hub/remotegpu/wait", json=[], headers=token).status_code == 400
        environment = stack.environment(waiter)
        assert environment is not None
        assert environment.gpus == 2
        assert person.http.post("/hub/remotegpu/wait", json=body, headers=token).is_success
        hub.await_ready(waiter)


def test_queue_wait_over_is_refused_and_leaves_the_queue(
    make_hub: object, stack: Stack, username: str
) -> None:
    impatient = make_hub("c.RemoteGPUSpawner.queue_wait = 1\n")  # type: ignore[operator]
    holder, waiter = stack.user(f"{username}-a"), stack.user(f"{username}-b")
    impatient.spawn(holder, image="quick", gpus=2)
    impatient.await_ready(holder)
    refused = impatient.spawn(waiter, image="quick", gpus=1)
    assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert "Nothing became free within 1 seconds" in refused.json()["message"]
    environment = stack.environment(waiter)
    assert environment is not None
    assert environment.status == "stopped"
    impatient.delete(holder)
    impatient.await_stopped(holder)


def test_notebook_that_ends_at_once_shows_its_last_lines_escaped(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    refused = hub.spawn(username, image="broken", gpus=1)
    assert refused.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    assert "no such kernel <b>here</b>" in refused.json()["message"]
    event = hub.events(username)[-1]
    assert "no such kernel &lt;b&gt;here&lt;/b&gt;" in event["html_message"]
    until("the GPU is free", lambda: stack.gpus_free() == 2)


def test_named_server_is_an_environment_and_goes_with_it(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    hub.spawn(username, "second-one", image="quick", gpus=1)
    hub.await_ready(username, "second-one")
    environment = stack.environment(username, "second-one")
    assert environment is not None
    assert httpx.get(f"{hub.url}/user/{username}/second-one/api").json()["version"] == "quick"
    renamed = hub.http.patch(f"/users/{username}/servers/second-one", json={"name": "other"})
    assert renamed.status_code == httpx.codes.BAD_REQUEST
    hub.delete(username, "second-one")
    hub.await_stopped(username, "second-one")
    assert hub.delete(username, "second-one", remove=True).is_success
    until("the environment is deleted", lambda: stack.environment(username, "second-one") is None)


def test_environment_that_ends_by_itself_is_noticed(make_hub: object, stack: Stack, username: str) -> None:
    hub = make_hub("c.Spawner.poll_interval = 1\n")  # type: ignore[operator]
    stack.user(username)
    hub.spawn(username, image="quick", gpus=1)
    hub.await_ready(username)
    environment = stack.environment(username)
    assert environment is not None
    stack.admin.environments.stop(environment.id)
    hub.await_stopped(username)
    assert stack.gpus_free() == 2


def test_real_notebook_server_lets_its_user_in(hub: Hub, stack: Stack, username: str) -> None:
    stack.user(username)
    hub.spawn(username, image="lab", gpus=1)
    hub.await_ready(username, timeout_s=90)
    with hub.signed_in(username) as person:
        status = person.http.get(f"/user/{username}/api/status")
        assert status.status_code == httpx.codes.OK, status.text[:500]
        assert "kernels" in status.json()
    other = stack.user(f"{username}-other")
    with hub.signed_in(other) as stranger:
        assert stranger.http.get(f"/user/{username}/api/status").status_code in (403, 404)
    hub.delete(username)
    hub.await_stopped(username)
