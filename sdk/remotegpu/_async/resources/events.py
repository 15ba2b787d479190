"""Events: what happened."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._async.stream import EVENTS, messages
from remotegpu._protocol import decode_json, given
from remotegpu.types.events import Event


class AsyncEvents(AsyncResource):
    """Events: what happened."""

    async def list(
        self,
        *,
        subject_type: str | None = None,
        subject_id: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncPage[Event]:
        """Recorded events, oldest first, from the beginning or `after` the one with this id."""
        params = given(
            subject_type=subject_type, subject_id=subject_id, after=after, limit=limit, cursor=cursor
        )
        return await fetch_page(self._transport, Event, EVENTS, params)

    async def watch(
        self,
        *,
        after: str | None = None,
        subject_type: str | None = None,
        subject_id: str | None = None,
        give_up_after_s: float = 300.0,
    ) -> AsyncGenerator[Event, None]:
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
        async with aclosing(found):
            async for message in found:
                if message is not None:
                    yield decode_json(Event, message.data, where=EVENTS)
