"""What the caller is told."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._async.stream import messages
from remotegpu._protocol import decode_json, given, segment
from remotegpu.types.notifications import (
    Notification,
    NotificationCount,
    NotificationPreference,
    NotificationPreferences,
)

_PATH = "/v1/notifications"


class AsyncNotifications(AsyncResource):
    """What the caller is told."""

    async def list(
        self,
        *,
        unread: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncPage[Notification]:
        """The own notifications, newest first."""
        query = given(unread=unread, limit=limit, cursor=cursor)
        return await fetch_page(self._transport, Notification, _PATH, query)

    async def watch(
        self, *, after: str | None = None, give_up_after_s: float = 300.0
    ) -> AsyncGenerator[Notification, None]:
        """What the caller is told, as it happens, without end: from now on, or `after="0"` all that is kept.
        Broken connections are made again where they stopped, so nothing is missed; when that has failed for
        `give_up_after_s` seconds, the last error is raised.
        """
        found = messages(self._transport, _PATH, params={}, after=after, give_up_after_s=give_up_after_s)
        async with aclosing(found):
            async for message in found:
                if message is not None:
                    yield decode_json(Notification, message.data, where=_PATH)

    async def count_unread(self) -> NotificationCount:
        """How many wait to be read."""
        return await self._transport.call(NotificationCount, "GET", "/v1/notifications/unread")

    async def read(self, notification: str) -> Notification:
        """Mark one as read."""
        path = f"/v1/notifications/{segment(notification)}:read"
        return await self._transport.put_in_state(Notification, path)

    async def read_all(self) -> NotificationCount:
        """Mark all as read that are there now."""
        return await self._transport.put_in_state(NotificationCount, "/v1/notifications:read-all")

    async def preferences(self) -> NotificationPreferences:
        """How the caller is told of what."""
        path = "/v1/notification-preferences"
        return await self._transport.call(NotificationPreferences, "GET", path)

    async def set_preference(
        self, kind: str, *, in_app: bool | None = None, mail: str | None = None
    ) -> NotificationPreference:
        """How to be told of a kind (`environment.stops_soon`), a noun (`environment`) or everything (`*`);
        the closest one counts. `mail` is `now`, `digest` (the default) or `off`.
        """
        path = f"/v1/notification-preferences/{segment(kind)}"
        body = given(in_app=in_app, mail=mail)
        return await self._transport.call(NotificationPreference, "PUT", path, body=body)

    async def delete_preference(self, kind: str) -> None:
        """Forget one; what is set for more counts again."""
        await self._transport.send("DELETE", f"/v1/notification-preferences/{segment(kind)}")
