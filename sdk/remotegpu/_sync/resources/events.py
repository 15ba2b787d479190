# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Events: what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator

from remotegpu._protocol import Reconnects, decode_json, given
from remotegpu._sse import Decoder
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.errors import ConnectionFailed, RateLimited, RemoteGPUError, RequestTimeout, Unavailable
from remotegpu.types.events import Event

SILENCE_S = 45.0
"""The server sends a sign of life every 15 s; three missed ones mean that the connection is dead."""


class SyncEvents(SyncResource):
    """Events: what happened."""

    def list(
        self,
        *,
        subject_type: str | None = None,
        subject_id: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Event]:
        """Recorded events, oldest first, from the beginning or `after` the one with this id."""
        params = given(
            subject_type=subject_type, subject_id=subject_id, after=after, limit=limit, cursor=cursor
        )
        return fetch_page(self._transport, Event, "/v1/events", params)

    def stream(
        self,
        *,
        after: str | None = None,
        subject_type: str | None = None,
        subject_id: str | None = None,
        give_up_after_s: float = 300.0,
    ) -> Iterator[Event]:
        """Follow events as they happen, without end: from now on, or `after` the one with this id. Broken
        connections are made again where they stopped, so nothing is missed; after `give_up_after_s` seconds
        without any contact the last error is raised.
        """
        position = after
        reconnects = Reconnects(give_up_after_s=give_up_after_s)
        while True:
            failure: RemoteGPUError | None = None
            try:
                with self._transport.stream(
                    "/v1/events",
                    params=given(subject_type=subject_type, subject_id=subject_id, after=position),
                    headers={} if position is None else {"Last-Event-ID": position},
                    silence_s=SILENCE_S,
                ) as response:
                    decoder = Decoder()
                    for chunk in response.iter_bytes():
                        reconnects.received()
                        for message in decoder.feed(chunk):
                            event = decode_json(Event, message.data, where="/v1/events")
                            position = event.id
                            yield event
                        position = decoder.last_id or position
            except (ConnectionFailed, RequestTimeout, Unavailable, RateLimited) as error:
                failure = error
            time.sleep(reconnects.pause_s(failure))
