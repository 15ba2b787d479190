# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""What the caller is told."""

from __future__ import annotations

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.notifications import Notification, NotificationCount


class SyncNotifications(SyncResource):
    """What the caller is told."""

    def list(
        self, *, unread: bool | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Notification]:
        """The own notifications, newest first."""
        query = given(unread=unread, limit=limit, cursor=cursor)
        return fetch_page(self._transport, Notification, "/v1/notifications", query)

    def count_unread(self) -> NotificationCount:
        """How many wait to be read."""
        return self._transport.call(NotificationCount, "GET", "/v1/notifications/unread")

    def read(self, notification: str) -> Notification:
        """Mark one as read."""
        path = f"/v1/notifications/{segment(notification)}:read"
        return self._transport.put_in_state(Notification, path)

    def read_all(self) -> NotificationCount:
        """Mark all as read that are there now."""
        return self._transport.put_in_state(NotificationCount, "/v1/notifications:read-all")
