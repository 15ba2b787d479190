"""A connection may be cut at any byte: what is created is created once, and what is not safe is sent once.

The server here is a bare socket that applies a request when it has arrived whole, as ours does: creates once
per idempotency key, everything else each time.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import remotegpu
from remotegpu import _protocol

from .conftest import TOKEN
from .samples import environment, page

BEFORE_THE_ANSWER = ("at_once", "in_the_head", "in_the_body", "after_the_request")
IN_THE_ANSWER = ("in_the_status_line", "in_the_headers", "after_the_headers", "in_the_content")
ANSWERS = ("busy", "slow_down", "bad_gateway")
FAULTS = st.lists(st.sampled_from([*BEFORE_THE_ANSWER, *IN_THE_ANSWER, *ANSWERS]), max_size=3)

REFUSALS = {
    "busy": (503, "Retry-After: 0\r\n", {"error": "unavailable", "detail": "Busy.", "hint": None}),
    "slow_down": (429, "Retry-After: 0\r\n", {"error": "rate_limited", "detail": "Slow.", "hint": None}),
    "bad_gateway": (502, "", None),
}


@dataclass
class CuttingServer:
    """Plays one fault for each connection, then answers well."""

    faults: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    """Those that arrived whole, in order."""
    applied: dict[str, int] = field(default_factory=dict)
    """How often each create had its effect, by key."""
    reset: bool = False

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(10)
                self._play(connection, self.faults.pop(0) if self.faults else "")
                if self.reset:  # an RST instead of a FIN
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _play(self, connection: socket.socket, fault: str) -> None:
        if fault == "at_once":
            return
        if fault == "in_the_head":
            connection.recv(20)
            return
        head, body = self._read(connection, whole=fault != "in_the_body")
        if fault == "in_the_body":
            return
        if fault not in REFUSALS:
            self._apply(head)
        self.requests.append(head + body)
        if fault == "after_the_request":
            return
        connection.sendall(self._answer(head, fault))

    def _read(self, connection: socket.socket, *, whole: bool) -> tuple[bytes, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536) or _gone()
        head, _, body = received.partition(b"\r\n\r\n")
        while whole and len(body) < int(_header(head, b"content-length") or b"0"):
            body += connection.recv(65536) or _gone()
        return head, body

    def _apply(self, head: bytes) -> None:
        key = (_header(head, b"idempotency-key") or b"").decode()
        self.applied[key] = 1 if key else self.applied.get("", 0) + 1

    def _answer(self, head: bytes, fault: str) -> bytes:
        status, more, content = REFUSALS.get(fault, (200, "", None))
        if fault not in REFUSALS:
            listed = head.startswith(b"GET /v1/environments?")
            content = page(environment()) if listed else environment()
        body = b"" if content is None else json.dumps(content).encode()
        start = (
            f"HTTP/1.1 {status} X\r\nConnection: close\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode()
        )
        cut = {
            "in_the_status_line": 7,
            "in_the_headers": len(start) - 10,
            "after_the_headers": len(start),
            "in_the_content": len(start) + len(body) // 2,
        }
        return (start + body)[: cut.get(fault)]


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return None


def _gone() -> bytes:
    raise ConnectionError("the client went away")


@pytest.fixture
def cutting() -> Iterator[CuttingServer]:
    server = CuttingServer()
    yield server
    server.close()


@pytest.fixture
def client(cutting: CuttingServer) -> Iterator[remotegpu.Client]:
    with remotegpu.Client(cutting.url, TOKEN, timeout_s=10) as made:
        yield made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_protocol, "FIRST_PAUSE_S", 0.0)


def begin(server: CuttingServer, faults: list[str], *, reset: bool) -> None:
    server.faults[:] = faults
    server.reset = reset
    server.requests.clear()
    server.applied.clear()


anything_may_be_cut = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@anything_may_be_cut
@given(faults=FAULTS, reset=st.booleans())
def test_create_happens_once_wherever_its_connections_are_cut(
    cutting: CuttingServer, client: remotegpu.Client, faults: list[str], reset: bool
) -> None:
    begin(cutting, faults, reset=reset)
    made = client.environments.create(name="work", image="base")
    assert made.name == "work"
    assert list(cutting.applied.values()) == [1], "one key, one effect"
    assert len({_header(request, b"idempotency-key") for request in cutting.requests}) == 1
    assert len({request.partition(b"\r\n\r\n")[0] for request in cutting.requests}) == 1


@anything_may_be_cut
@given(faults=FAULTS, reset=st.booleans())
def test_read_is_answered_wherever_its_connections_are_cut(
    cutting: CuttingServer, client: remotegpu.Client, faults: list[str], reset: bool
) -> None:
    begin(cutting, faults, reset=reset)
    assert [found.id for found in client.environments.list(limit=10)] == ["env1"]


@anything_may_be_cut
@given(faults=FAULTS, reset=st.booleans())
def test_write_that_is_not_safe_has_its_effect_at_most_once(
    cutting: CuttingServer, client: remotegpu.Client, faults: list[str], reset: bool
) -> None:
    begin(cutting, faults, reset=reset)
    try:
        client.environments.start("env1")
    except (remotegpu.ConnectionFailed, remotegpu.Unavailable, remotegpu.RateLimited):
        pass
    else:
        # A connection that was refused while it was made carried nothing: the one thing to try again.
        assert set(faults) <= {"at_once"}
    assert sum(cutting.applied.values()) <= 1
    assert len(cutting.requests) <= 1


@pytest.mark.parametrize("fault", [*BEFORE_THE_ANSWER, *IN_THE_ANSWER])
def test_client_gives_up_after_its_retries_and_says_what_to_do(
    cutting: CuttingServer, client: remotegpu.Client, fault: str
) -> None:
    begin(cutting, [fault] * 4, reset=False)
    with pytest.raises(remotegpu.ConnectionFailed, match=f"{cutting.url}.*may or may not"):
        client.environments.create(name="work", image="base")
    assert cutting.faults == []


@settings(anything_may_be_cut, max_examples=15)
@given(faults=FAULTS)
async def test_asyncio_create_happens_once_too(cutting: CuttingServer, faults: list[str]) -> None:
    begin(cutting, faults, reset=False)
    async with remotegpu.AsyncClient(cutting.url, TOKEN, timeout_s=10) as client:
        await client.environments.create(name="work", image="base")
    assert list(cutting.applied.values()) == [1]
