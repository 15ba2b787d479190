# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Events: what happened."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from remotegpu._protocol import decode_json, given
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu._sync.stream import EVENTS, messages
from remotegpu.types.events import Event


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
        return fetch_page(self._transport, Event, EVENTS, params)

    def watch(
        self,
        *,
        after: str | None = None,
        subject_type: str | None = None,
        subject_id: str | None = None,
        give_up_after_s: float = 300.0,
    ) -> Generator[Event, None, None]:
        """Events as they happen, without end: from now on, or `after` the one with this id. Broken
        connections are made again where they stopped, so nothing is missed and nothing comes twice; when that
        has failed for `give_up_after_s` seconds, the last error is raised.
        """
        found = messages(
            self._transport,
            EVENTS,
            params=given(subject_type=subject_type, subject_id=subject_id),
            after=after,
            give_up_after_s=give_up_after_s,
        )
        with closing(found):
            for message in found:
                if message is not None:
                    yield decode_json(Event, message.data, where=EVENTS)
