# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Lists. The first page is there at once; iterating fetches the others when it gets to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic

from remotegpu import _protocol, _tables
from remotegpu._protocol import Params, WireT
from remotegpu._sync.transport import SyncTransport
from remotegpu.errors import UnexpectedAnswer

if TYPE_CHECKING:
    from pandas import DataFrame


class Page(Generic[WireT]):
    """One page of a list. Iterate over it to get the items of this page and of all that follow."""

    items: list[WireT]
    """The items of this page alone."""
    next_cursor: str | None
    """Where the next page starts; ``None`` on the last one."""

    def __init__(
        self,
        transport: SyncTransport,
        kind: type[WireT],
        path: str,
        params: Params,
        items: list[WireT],
        next_cursor: str | None,
    ) -> None:
        self._transport = transport
        self._kind = kind
        self._path = path
        self._params = params
        self.items = items
        self.next_cursor = next_cursor

    def next_page(self) -> Page[WireT] | None:
        """Fetch the page after this one; ``None`` when this is the last."""
        if self.next_cursor is None:
            return None
        params = {**self._params, "cursor": self.next_cursor}
        return fetch_page(self._transport, self._kind, self._path, params)

    def __iter__(self) -> Iterator[WireT]:
        page: Page[WireT] | None = self
        while page is not None:
            for item in page.items:
                yield item
            cursor = page.next_cursor
            page = page.next_page()
            if page is not None and page.next_cursor == cursor:
                raise UnexpectedAnswer(f"The list {self._path} does not end: a page points to itself.")

    def to_pandas(self) -> DataFrame:
        """The items of this page and of all that follow as a DataFrame: flat columns with units in their
        names, times in UTC.

        :raises remotegpu.errors.MissingExtra: pandas is not installed.
        """
        from remotegpu import _frames

        _frames.require_pandas()  # before anything is fetched in vain
        return _frames.frame(self._kind, [item for item in self])

    def __repr__(self) -> str:
        more = ", more follow" if self.next_cursor is not None else ""
        return f"<{len(self.items)} x {self._kind.__name__}{more}>"

    def _repr_html_(self) -> str:
        return _tables.html(self._kind.__name__, self.items, more=self.next_cursor is not None)


def fetch_page(transport: SyncTransport, kind: type[WireT], path: str, params: Params) -> Page[WireT]:
    """GET one page."""
    response = transport.send("GET", path, params=params)
    items, cursor = _protocol.decode_page(kind, response)
    return Page(transport, kind, path, params, items, cursor)
