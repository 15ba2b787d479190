"""Around every request: its id, the limits of its body, its measurement, the last-resort error."""

from __future__ import annotations

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remotegpu.errors import ApiError, BadRequest, PayloadTooLarge, ServerError
from remotegpu_server import observability
from remotegpu_server.db.tables import new_id
from remotegpu_server.error_answers import REQUEST_ID_HEADER, answer, api_error_of

MAX_BODY_BYTES = 1024 * 1024
MAX_PIECE_BODY_BYTES = 1536 * 1024
"""Of the pieces of output, artifacts and inputs: 1 MiB, in base64."""
_PIECES = re.compile(r"/v1/(agent/attempts/[^/]+/(logs|artifacts)|task-inputs/[^/]+)")
MAX_JSON_DEPTH = 32
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_log = structlog.get_logger(__name__)


class RequestEnvelope:
    """The outermost layer of the app, plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.monotonic()
        status = 0

        async def send_stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            body = await _read_body(scope, receive)
            await self._app(scope, _replayed(body, receive), send_stamped)
        except ApiError as error:
            await answer(error, request_id)(scope, receive, send_stamped)
        except Exception as error:  # the last resort: every request gets an answer in our shape
            known = api_error_of(error)
            if known is None:
                observability.UNHANDLED.inc()
                _log.exception("unhandled_error", method=scope["method"], path=scope["path"])
                known = ServerError(
                    "The server failed; this is a bug.", hint="Report it with the request id, please."
                )
            else:
                _log.warning("request_failed", error=type(error).__name__, code=known.error)
            if status:
                raise
            await answer(known, request_id)(scope, receive, send_stamped)
        finally:
            _measure(scope, status, time.monotonic() - started)


def _request_id(scope: Scope) -> str:
    """The client's own id when it is harmless, so that logs of both sides meet."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else new_id("req")


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body, refused beyond the limit before it is held in memory."""
    declared = Headers(scope=scope).get("content-length", "0")
    most = MAX_PIECE_BODY_BYTES if _PIECES.fullmatch(scope["path"]) else MAX_BODY_BYTES
    if not declared.isdigit() or int(declared) > most:
        raise PayloadTooLarge(f"The body is larger than {most} bytes.")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("The client went away before the body was complete.")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise PayloadTooLarge(f"The body is larger than {most} bytes.")
        parts.append(part)
        if not message.get("more_body", False):
            break
    body = b"".join(parts)
    if Headers(scope=scope).get("content-type") != "application/octet-stream":
        _check_depth(body)
    return body


def _check_depth(body: bytes) -> None:
    """Refuse deep nesting before a recursive parser sees it."""
    if body.count(b"[") + body.count(b"{") <= MAX_JSON_DEPTH:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", body)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise BadRequest(f"The JSON is nested deeper than {MAX_JSON_DEPTH} levels.")


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _measure(scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", "(none)")
    observability.REQUESTS.labels(scope["method"], route, str(status)).observe(seconds)
    if route not in ("/healthz", "/readyz", "/metrics"):
        _log.debug("request", method=scope["method"], route=route, status=status, ms=round(seconds * 1000, 1))
