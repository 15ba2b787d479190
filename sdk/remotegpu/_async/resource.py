"""What the resources of a client share: the transport."""

from __future__ import annotations

from remotegpu._async.transport import AsyncTransport


class AsyncResource:
    """The endpoints of one noun. Each method is one HTTP request, unless it says otherwise."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
