# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Event streams that go on: over broken connections, restarts of the server and hours of silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator
from contextlib import closing
from typing import TypeVar

from remotegpu._protocol import Params, Reconnects
from remotegpu._sse import Decoder, Message
from remotegpu._sync.transport import SyncTransport
from remotegpu.errors import (
    ConnectionFailed,
    NotFound,
    RateLimited,
    RemoteGPUError,
    RequestTimeout,
    Unavailable,
)
from remotegpu.types.wire import Wire

WatchedT = TypeVar("WatchedT", bound=Wire)

SILENCE_S = 45.0
"""The server sends a sign of life every 15 s; three missed ones mean that the connection is dead."""
EVENTS = "/v1/events"
TRANSIENT = (ConnectionFailed, RequestTimeout, Unavailable, RateLimited)
"""What a server that restarts, or a network that is away for a moment, looks like."""


def messages(
    transport: SyncTransport, path: str, *, params: Params, after: str | None, give_up_after_s: float
) -> Generator[Message | None, None, None]:
    """Messages after a position, without end; ``None`` for a sign of life without one. A broken connection is
    made again where it stopped; when that has failed for `give_up_after_s` seconds, the last error is raised.
    """
    position = after
    reconnects = Reconnects(give_up_after_s=give_up_after_s)
    while True:
        failure: RemoteGPUError | None = None
        decoder = Decoder()
        try:
            with transport.stream(
                path,
                params={**params, "after": position},
                headers={} if position is None else {"Last-Event-ID": position},
                silence_s=SILENCE_S,
            ) as response:
                for chunk in response.iter_bytes():
                    for message in decoder.feed(chunk):
                        if message.event == "end":
                            raise Unavailable(f"The server ended the stream ({message.data.decode()}).")
                        position = message.id or position
                        yield message
                    reconnects.received()
                    position = decoder.last_id or position
                    yield None
        except TRANSIENT as error:
            failure = error
        time.sleep(reconnects.pause_s(failure))


def states(
    transport: SyncTransport,
    get: Callable[[], WatchedT],
    *,
    subject_type: str,
    subject_id: str,
    unwatched: Collection[str] = (),
    give_up_after_s: float,
) -> Generator[WatchedT, None, None]:
    """Something as it is now, and again whenever it differs, until it is gone. The stream only tells when to
    look, so nothing depends on a message that was missed. Changes of the fields in `unwatched` alone (a
    sampled metric) are none.
    """
    last: WatchedT | None = None
    params = {"subject_type": subject_type, "subject_id": subject_id}
    signs = messages(transport, EVENTS, params=params, after=None, give_up_after_s=give_up_after_s)
    with closing(signs):
        for message in signs:
            if message is not None:
                continue  # the sign after a batch of messages leads to one look, not to one each
            try:
                found = get()
            except NotFound:
                if last is None:
                    raise
                return
            except TRANSIENT:
                continue  # the stream finds out whether the server is gone
            still = {name: getattr(found, name) for name in unwatched}
            if last is None or last.model_copy(update=still) != found:
                yield found
            last = found
