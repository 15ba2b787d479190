"""What the caller is told."""

from __future__ import annotations

from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import given, segment
from remotegpu.types.notifications import Notification, NotificationCount


class AsyncNotifications(AsyncResource):
    """What the caller is told."""

    async def list(
        self, *, unread: bool | None = None, limit: int | None = None, cursor: str | None = None
    ) -> AsyncPage[Notification]:
        """The own notifications, newest first."""
        query = given(unread=unread, limit=limit, cursor=cursor)
        return await fetch_page(self._transport, Notification, "/v1/notifications", query)

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
