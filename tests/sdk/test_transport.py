"""How the client behaves on a network and with a server that are not always well."""

from __future__ import annotations

import json
import socket

import pytest

import remotegpu
from remotegpu import _http, _protocol
from remotegpu.errors import BY_CODE

from .conftest import TOKEN
from .samples import IMAGE, USER, environment, page
from .scripted_server import ScriptedServer, answers, breaks_off, hangs, refuses, says


def test_request_carries_token_user_agent_and_json(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(answers({"user": USER, "one_time_password": None}, status=201))
    client.users.create(username="ada", role="member")
    seen = server.seen[0]
    assert (seen.method, seen.path) == ("POST", "/v1/users")
    assert seen.headers["authorization"] == f"Bearer {TOKEN}"
    assert seen.headers["user-agent"].startswith(f"remotegpu/{remotegpu.__version__} ")
    assert json.loads(seen.body) == {"username": "ada", "role": "member"}


def test_login_sends_no_token(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(refuses(401, "invalid_credentials"))
    with pytest.raises(remotegpu.InvalidCredentials):
        client.auth.login(username="ada", password="wrong")
    assert "authorization" not in server.seen[0].headers


def test_acting_for_a_user_shares_connections_and_leaves_the_client_alone(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(*[answers(page())] * 3)
    client.images.list()
    with client.on_behalf_of("alice") as view:
        view.images.list()
    client.images.list()
    acting = [seen.headers.get("x-remotegpu-on-behalf-of") for seen in server.seen]
    assert acting == [None, "alice", None]
    assert repr(view) == f"<Client {server.url} for alice>"


def test_refused_connection_names_the_server_and_what_to_check() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        client = remotegpu.Client(url, TOKEN, max_retries=0)
        with client, pytest.raises(remotegpu.ConnectionFailed, match="Is the server running") as caught:
            client.me.get()
    assert url in str(caught.value)


def test_server_that_hangs_is_a_timeout_and_is_not_asked_again(server: ScriptedServer) -> None:
    server.play(hangs)
    with (
        remotegpu.Client(server.url, TOKEN, timeout_s=0.2) as client,
        pytest.raises(remotegpu.RequestTimeout),
    ):
        client.capacity.get()
    assert len(server.seen) == 1


def test_read_is_repeated_after_a_proxy_error_and_after_a_broken_answer(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(says(502, "<html>bad gateway</html>"), breaks_off, answers(page(IMAGE)))
    assert [image.name for image in client.images.list()] == ["base"]
    assert len(server.seen) == 3


def test_create_is_repeated_under_one_key_and_the_next_one_has_another(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(breaks_off, *[answers(environment(), status=201)] * 2)
    client.environments.create(name="work", image="base")
    client.environments.create(name="work", image="base")
    first, repeated, second = (seen.headers["idempotency-key"] for seen in server.seen)
    assert first == repeated != second


def test_write_without_a_key_is_never_sent_twice(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(breaks_off, says(502, ""))
    with pytest.raises(remotegpu.ConnectionFailed):
        client.environments.start("env1")
    with pytest.raises(remotegpu.Unavailable):
        client.images.update("base", status="withdrawn")
    assert len(server.seen) == 2


def test_retries_end(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(*[refuses(503, "unavailable")] * 4)
    with pytest.raises(remotegpu.Unavailable):
        client.me.get()
    assert len(server.seen) == 4


def test_no_capacity_is_an_answer_and_is_not_asked_again(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(refuses(503, "no_capacity", data={"free_at": None}))
    with pytest.raises(remotegpu.NoCapacity) as caught:
        client.environments.create(name="work", image="base", gpus=1, queue=False)
    assert caught.value.data == {"free_at": None}
    assert len(server.seen) == 1


def test_retry_after_is_waited_for_and_a_long_one_is_handed_to_the_caller() -> None:
    retries = _protocol.Retries(repeatable=True, limit=3)
    pause_s = retries.after_error(remotegpu.RateLimited("slow down", retry_after_s=7))
    assert pause_s is not None
    assert 7 <= pause_s <= 7 + _protocol.FIRST_PAUSE_S
    assert retries.after_error(remotegpu.RateLimited("slow down", retry_after_s=3600)) is None


def test_pauses_grow_and_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    longest: list[float] = []
    monkeypatch.setattr(_protocol.random, "uniform", lambda low, high: longest.append(high) or high)
    retries = _protocol.Retries(repeatable=True, limit=7)
    while retries.after_error(remotegpu.Unavailable("")) is not None:
        pass
    assert longest == [0.25, 0.5, 1, 2, 4, 4, 4]


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_each_code_becomes_its_class(client: remotegpu.Client, server: ScriptedServer, code: str) -> None:
    kind = BY_CODE[code]
    server.play(
        *[refuses(kind.status, code, hint="Do this.", data={"a": 1}, headers={"Retry-After": "9999"})]
    )
    with pytest.raises(kind) as caught:
        client.me.get()
    error = caught.value
    assert type(error) is kind
    assert (error.error, error.http_status, error.request_id) == (code, kind.status, "req-1")
    assert (error.hint, error.data, error.retry_after_s) == ("Do this.", {"a": 1}, 9999.0)


def test_code_of_a_newer_server_becomes_an_api_error(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(refuses(418, "teapot"))
    with pytest.raises(remotegpu.ApiError) as caught:
        client.me.get()
    assert type(caught.value) is remotegpu.ApiError
    assert (caught.value.error, caught.value.http_status) == ("teapot", 418)


@pytest.mark.parametrize(
    "step",
    [
        says(200, "<html>log in</html>"),
        answers({"items": None}),
        answers({"items": [{"id": 1}], "next_cursor": None}),
        answers([]),
        says(404, "nothing here"),
        answers("a string", status=400),
        says(302, "", headers={"Location": "https://elsewhere.example.org/login"}),
    ],
)
def test_something_that_is_not_our_server_is_called_that(
    client: remotegpu.Client, server: ScriptedServer, step: object
) -> None:
    server.play(step)  # type: ignore[arg-type]
    with pytest.raises(remotegpu.UnexpectedAnswer, match=server.url):
        client.images.list()
    assert len(server.seen) == 1


def test_fields_and_values_of_a_newer_server_are_tolerated(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(answers(page({**IMAGE, "new_field": 1, "status": "quarantined", "runtime": "podman"})))
    (image,) = client.images.list().items
    assert (image.status, image.runtime) == ("unknown", "unknown")


def test_iterating_fetches_all_pages_with_the_same_filter(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(
        answers(page(environment(id="a"), next_cursor="2")),
        answers(page(next_cursor="3")),
        answers(page(environment(id="b"))),
    )
    found = client.environments.list(owner="ada", limit=1)
    assert [item.id for item in found.items] == ["a"]
    assert len(server.seen) == 1, "one method, one request"
    assert [item.id for item in found] == ["a", "b"]
    assert [seen.path for seen in server.seen] == [
        "/v1/environments?owner=ada&limit=1",
        "/v1/environments?owner=ada&limit=1&cursor=2",
        "/v1/environments?owner=ada&limit=1&cursor=3",
    ]


def test_list_that_points_to_itself_ends(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(*[answers(page(IMAGE, next_cursor="same"))] * 2)
    with pytest.raises(remotegpu.UnexpectedAnswer, match="does not end"):
        list(client.images.list())


@pytest.mark.parametrize("bad", ["", ".", ".."])
def test_id_that_would_address_something_else_is_refused(client: remotegpu.Client, bad: str) -> None:
    with pytest.raises(ValueError, match="not an id"):
        client.environments.delete(bad)


def test_name_is_quoted_in_the_path(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(answers(USER))
    client.users.get("a/../b?c#d")
    assert server.seen[0].path == "/v1/users/a%2F..%2Fb%3Fc%23d"


def test_false_zero_and_empty_are_sent(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(answers(environment(), status=201), answers(page()))
    client.environments.create(name="work", image="base", gpus=0, queue=False, gpu_models=[], env={})
    client.gpus.list(free=False)
    assert json.loads(server.seen[0].body) == {
        "name": "work", "image": "base", "gpus": 0, "queue": False, "gpu_models": [], "env": {},
    }  # fmt: skip
    assert server.seen[1].path == "/v1/gpus?free=false"


def test_token_stands_in_no_repr_and_no_error(server: ScriptedServer) -> None:
    secret = "rgu_secret_token"
    with remotegpu.Client(server.url, secret, max_retries=0) as client:
        shown = [repr(client), repr(client.environments), repr(client._transport)]
        server.play(says(500, "oops"), breaks_off)
        for _ in range(2):
            with pytest.raises(remotegpu.RemoteGPUError) as caught:
                client.me.get()
            shown += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    with pytest.raises(remotegpu.NotConfigured) as refused:
        remotegpu.Client(server.url, f"{secret}\nX-Admin: yes")
    assert not any(secret in text for text in [*shown, str(refused.value)])


def test_user_name_cannot_smuggle_a_header(client: remotegpu.Client) -> None:
    with pytest.raises(remotegpu.NotConfigured):
        client.on_behalf_of("alice\r\nX-Admin: yes")


async def test_async_client_reads_pages_and_retries_too(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_protocol, "FIRST_PAUSE_S", 0.0)
    server.play(says(503, ""), answers(page(IMAGE, next_cursor="2")), answers(page(IMAGE)))
    async with remotegpu.AsyncClient(server.url, TOKEN) as client:
        names = [image.name async for image in await client.images.list()]
    assert names == ["base", "base"]


async def test_transport_argument_replaces_the_network() -> None:
    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = _http.ASGITransport(app=app)
    async with remotegpu.AsyncClient("http://x.test", "", transport=transport) as client:
        await client.health.live()
