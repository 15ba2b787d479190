# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""What the caller is told."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from remotegpu._protocol import decode_json, given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu._sync.stream import messages
from remotegpu.types.notifications import (
    Notification,
    NotificationCount,
    NotificationPreference,
    NotificationPreferences,
)

_PATH = "/v1/notifications"


class SyncNotifications(SyncResource):
    """What the caller is told."""

    def list(
        self,
        *,
        unread: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Notification]:
        """The own notifications, newest first."""
        query = given(unread=unread, limit=limit, cursor=cursor)
        return fetch_page(self._transport, Notification, _PATH, query)

    def watch(
        self, *, after: str | None = None, give_up_after_s: float = 300.0
    ) -> Generator[Notification, None, None]:
        """What the caller is told, as it happens, without end: from now on, or `after="0"` all that is kept.
        Broken connections are made again where they stopped, so nothing is missed; when that has failed for
        `give_up_after_s` seconds, the last error is raised.
        """
        found = messages(self._transport, _PATH, params={}, after=after, give_up_after_s=give_up_after_s)
        with closing(found):
            for message in found:
                if message is not None:
                    yield decode_json(Notification, message.data, where=_PATH)

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

    def preferences(self) -> NotificationPreferences:
        """How the caller is told of what."""
        path = "/v1/notification-preferences"
        return self._transport.call(NotificationPreferences, "GET", path)

    def set_preference(
        self, kind: str, *, in_app: bool | None = None, mail: str | None = None
    ) -> NotificationPreference:
        """How to be told of a kind (`environment.stops_soon`), a noun (`environment`) or everything (`*`);
        the closest one counts. `mail` is `now`, `digest` (the default) or `off`.
        """
        path = f"/v1/notification-preferences/{segment(kind)}"
        body = given(in_app=in_app, mail=mail)
        return self._transport.call(NotificationPreference, "PUT", path, body=body)

    def delete_preference(self, kind: str) -> None:
        """Forget one; what is set for more counts again."""
        self._transport.send("DELETE", f"/v1/notification-preferences/{segment(kind)}")
