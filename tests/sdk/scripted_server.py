"""A real HTTP server on loopback that plays a script: one step for each request, faults included."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[["Handler"], None]


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """Plays the next step of its server's script."""

    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def _play(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(self.command, self.path, headers, body))
        self.server.script.popleft()(self)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _play  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class ScriptedServer(ThreadingHTTPServer):
    """Each request takes one step from the script; a request too many fails the test loudly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: deque[Step] = deque()
        self.seen: list[Seen] = []
        self.finished = threading.Event()
        """Set when the test is over: steps that hang end then."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def play(self, *steps: Step) -> None:
        self.script.extend(steps)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that goes away in the middle is part of the script


def answers(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Step:
    content = {"Content-Type": "application/json", **(headers or {})}
    return lambda handler: handler.send(status, json.dumps(body).encode(), content)


def refuses(status: int, code: str, *, headers: dict[str, str] | None = None, **fields: object) -> Step:
    body = {"error": code, "detail": f"This is {code}.", "hint": None, "request_id": "req-1", **fields}
    return answers(body, status=status, headers=headers)


def says(status: int, text: str, *, headers: dict[str, str] | None = None) -> Step:
    """An answer that is not ours: a proxy's page."""
    return lambda handler: handler.send(
        status, text.encode(), {"Content-Type": "text/html", **(headers or {})}
    )


def hangs(handler: Handler) -> None:
    handler.server.finished.wait(30)
    handler.close_connection = True


def breaks_off(handler: Handler) -> None:
    """Promises an answer, sends a part, and is gone."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"ite')
    _cut(handler)


def streams(*parts: bytes, cut: bool = True) -> Step:
    """An event stream that sends these parts; then it is cut, or stays silent until the test is over."""

    def step(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.end_headers()
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()
        if not cut:
            handler.server.finished.wait(30)
        _cut(handler)

    return step


def _cut(handler: Handler) -> None:
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
