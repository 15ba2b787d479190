# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""What the resources of a client share: the transport."""

from __future__ import annotations

from remotegpu._sync.transport import SyncTransport


class SyncResource:
    """The endpoints of one noun. Each method is one HTTP request, unless it says otherwise."""

    def __init__(self, transport: SyncTransport) -> None:
        self._transport = transport
