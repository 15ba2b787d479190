"""What both clients agree on and neither waits for: headers, errors, retries, decoding."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from remotegpu import _http
from remotegpu.errors import (
    BY_CODE,
    ApiError,
    ClientError,
    ConnectionFailed,
    NoCapacity,
    NotConfigured,
    RateLimited,
    RemoteGPUError,
    RequestTimeout,
    Unavailable,
    UnexpectedAnswer,
)

if TYPE_CHECKING:
    from remotegpu.types.wire import Wire

WireT = TypeVar("WireT", bound="Wire")
READING = {"reading": True}
"""Validation context of answers: values of an enum that a newer server has are read as ``UNKNOWN``."""
Params = Mapping[str, object]

CONNECT_TIMEOUT_S = 5.0
RETRY_BUDGET_S = 60.0
"""No retry starts later than this after the first attempt."""
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 4.0
REPEATABLE_METHODS = frozenset({"GET", "PUT", "DELETE"})


def timeout(timeout_s: float, *, read_s: float | None = None) -> _http.Timeout:
    """The limits of one request, in seconds; ``read_s`` differs for requests that the server holds."""
    return _http.Timeout(
        timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s if read_s is None else read_s
    )


def segment(value: str) -> str:
    """A path segment. An empty one would address the list instead of an item."""
    if not value or value in {".", ".."}:
        raise ValueError(f"not an id or a name: {value!r}")
    return quote(value, safe="@")


def given(**fields: object) -> dict[str, object]:
    """The fields that the caller gave: ``None`` means left out, everywhere in this API's requests."""
    return {name: value for name, value in fields.items() if value is not None}


def listed(values: Iterable[str] | None, *, what: str) -> list[str] | None:
    """A list for a request. :raises TypeError: it is one text, which would be taken apart into letters."""
    if isinstance(values, str):
        raise TypeError(f"{what} is a list of texts, such as {values.split()!r}, and not one text.")
    return None if values is None else list(values)


def dumped(value: Wire | None, kind: type[Wire], *, what: str) -> dict[str, object] | None:
    """A wire type in a request. :raises TypeError: it is something else."""
    if value is None:
        return None
    if not isinstance(value, kind):
        raise TypeError(f"{what} takes {kind.__module__}.{kind.__qualname__}, and not {value!r}.")
    return value.model_dump()


def measured(
    begin: datetime | None, end: datetime | None, step_s: int | None, metric: Sequence[str] | None
) -> dict[str, object]:
    """What to see of a history of measurements."""
    times = {name: at.isoformat() for name, at in (("from", begin), ("to", end)) if at is not None}
    return times | given(step_s=step_s, metric=listed(metric, what="metric"))


def query(params: Params | None) -> dict[str, str | list[str]]:
    """Query parameters as text; those left out are not sent, lists become repeated ones."""
    return {
        name: [str(one) for one in value] if isinstance(value, list | tuple) else _query_text(value)
        for name, value in (params or {}).items()
        if value is not None
    }


def _query_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def encode(body: object) -> bytes:
    """A request's body as JSON."""
    if isinstance(body, bytes):
        return body
    dump = getattr(body, "model_dump_json", None)
    return (dump() if dump is not None else json.dumps(body)).encode()


def new_key() -> str:
    """An idempotency key: one per call, shared by the retries of that call."""
    return secrets.token_urlsafe(18)


def header_value(value: str, *, what: str) -> str:
    """A value that may stand in a header. The message never repeats it: it may be a secret."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise NotConfigured(f"The {what} has characters that cannot be sent (a line break, perhaps).")
    return value


def decode(kind: type[WireT], response: _http.Response) -> WireT:
    """Read an answer, tolerating the fields of a newer server."""
    return decode_json(kind, response.content, where=str(response.url))


def decode_json(kind: type[WireT], content: bytes, *, where: str) -> WireT:
    """Read one object from JSON. :raises UnexpectedAnswer: it is something else."""
    try:
        return kind.model_validate_json(content, extra="ignore", context=READING)
    except ValueError as error:
        raise _unexpected(where, f"not a {kind.__name__}{_first_problem(error)}") from error


def decode_page(kind: type[WireT], response: _http.Response) -> tuple[list[WireT], str | None]:
    """Read one page of a list: its items and the cursor of the next page."""
    where = str(response.url)
    try:
        body = json.loads(response.content)
        items = [kind.model_validate(item, extra="ignore", context=READING) for item in body["items"]]
        cursor = body["next_cursor"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unexpected(where, f"not a list of {kind.__name__}{_first_problem(error)}") from error
    return items, None if cursor is None else str(cursor)


def _first_problem(error: Exception) -> str:
    """Which field of the answer did not fit; never its value."""
    problems = getattr(error, "errors", None)
    if problems is None:
        return ""
    first = problems(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    return f" ({place + ': ' if place else ''}{first['msg']})"


def _unexpected(where: str, what: str) -> UnexpectedAnswer:
    return UnexpectedAnswer(
        f"{where} answered, but with {what}. "
        "Is this the address of a RemoteGPU server, and is this client not too old?"
    )


def error_from(response: _http.Response) -> RemoteGPUError:
    """The exception for an answer that is not 2xx; its body must have been read."""
    retry_after_s = _retry_after_s(response.headers.get("Retry-After"))
    status = response.status_code
    try:
        body = json.loads(response.content)
        code, detail = str(body["error"]), str(body["detail"])
        hint, data = body.get("hint"), body.get("data")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _foreign_error(response, retry_after_s)
    return BY_CODE.get(code, ApiError)(
        detail,
        hint=None if hint is None else str(hint),
        data=data if isinstance(data, dict) else {},
        request_id=str(body.get("request_id") or response.headers.get("X-Request-Id", "")),
        status=status,
        code=code,
        retry_after_s=retry_after_s,
    )


def _foreign_error(response: _http.Response, retry_after_s: float | None) -> RemoteGPUError:
    """An error that our server did not write: a proxy's page, a redirect, another program."""
    status, where = response.status_code, str(response.url)
    said = f"{where} answered {status} {response.reason_phrase}".rstrip()
    if status in {502, 503, 504}:
        return Unavailable(
            f"{said}: the server behind it is not there for the moment.",
            status=status,
            retry_after_s=retry_after_s,
        )
    if status == RateLimited.status:
        return RateLimited(f"{said}: too many requests.", retry_after_s=retry_after_s)
    if 300 <= status < 400:
        target = response.headers.get("Location", "another address")
        return UnexpectedAnswer(
            f"{said} and points to {target}. Use the address of the RemoteGPU server itself."
        )
    return UnexpectedAnswer(f"{said}, and not in the way of a RemoteGPU server. Is the address right?")


def _retry_after_s(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86400 else None


def failure_from(error: _http.RequestError, *, url: str) -> ClientError:
    """The exception for a request that got no answer. httpx's own text can hold header values; it is
    repeated only where it describes the network.
    """
    if isinstance(error, _http.ConnectError | _http.ConnectTimeout):
        why = str(error) or "no answer"
        return ConnectionFailed(
            f"Cannot reach {url} ({why}). Is the server running, and is the address right?"
        )
    if isinstance(error, _http.TimeoutException):
        return RequestTimeout(f"{url} did not answer in time; the request may or may not have taken effect.")
    if isinstance(error, _http.DecodingError):
        return _unexpected(url, "a body that cannot be read")
    return ConnectionFailed(
        f"The connection to {url} broke ({type(error).__name__}); the request may or may not have taken"
        " effect. Look before you repeat it."
    )


def was_sent(error: _http.RequestError) -> bool:
    """False: the request never left this machine, so repeating it is always safe."""
    return not isinstance(error, _http.ConnectError | _http.ConnectTimeout | _http.PoolTimeout)


class Retries:
    """Decides, for one call, whether to try again and how long to wait: full jitter, few, and bounded."""

    def __init__(self, *, repeatable: bool, limit: int) -> None:
        self._repeatable = repeatable
        self._limit = limit
        self._done = 0
        self._started = time.monotonic()

    def after_failure(self, error: _http.RequestError) -> float | None:
        """Seconds to wait, or ``None`` to give up. A timeout is not repeated: the caller waited enough."""
        if not was_sent(error):
            return self._pause(None)
        if self._repeatable and not isinstance(error, _http.TimeoutException | _http.DecodingError):
            return self._pause(None)
        return None

    def after_error(self, error: RemoteGPUError) -> float | None:
        """Seconds to wait, or ``None`` to give up. `no_capacity` is an answer, not a fault."""
        if not self._repeatable or isinstance(error, NoCapacity) or not isinstance(error, ApiError):
            return None
        if error.http_status not in {429, 502, 503, 504}:
            return None
        return self._pause(error.retry_after_s)

    def _pause(self, retry_after_s: float | None) -> float | None:
        if self._done >= self._limit:
            return None
        jitter_s = random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._done))  # noqa: S311 no secret
        pause_s = jitter_s if retry_after_s is None else retry_after_s + jitter_s
        if time.monotonic() - self._started + pause_s > RETRY_BUDGET_S:
            return None
        self._done += 1
        return pause_s


class Reconnects:
    """Paces the reconnects of a stream, and gives up when they have failed for too long. A long silence is
    no failure: a machine that slept for a night gets its tries too.
    """

    FIRST_PAUSE_S = 0.5
    LONGEST_PAUSE_S = 15.0

    def __init__(self, *, give_up_after_s: float) -> None:
        self._give_up_after_s = give_up_after_s
        self._failures = 0
        self._failing_since: float | None = None

    def received(self) -> None:
        """The connection works."""
        self._failures = 0
        self._failing_since = None

    def pause_s(self, error: RemoteGPUError | None) -> float:
        """Seconds until the next connection. :raises RemoteGPUError: `error`, when it is time to give up."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if error is not None and now - self._failing_since >= self._give_up_after_s:
            raise error
        longest = min(self.LONGEST_PAUSE_S, self.FIRST_PAUSE_S * 2**self._failures)
        self._failures += 1
        asked = error.retry_after_s if isinstance(error, ApiError) else None
        return (asked or 0.0) + random.uniform(0, longest)  # noqa: S311 no secret
