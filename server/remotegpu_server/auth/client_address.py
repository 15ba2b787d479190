"""The address of whoever signs in, where it can be known."""

from __future__ import annotations

import ipaddress

from starlette.requests import Request

from remotegpu_server.settings import Settings


def client_address(request: Request, settings: Settings, *, forwarder_is_trusted: bool = False) -> str | None:
    """The last address that somebody we trust has seen. ``X-Forwarded-For`` counts only from a configured
    proxy, or from a service whose token was checked; anybody else could write anything there.
    """
    direct = request.client.host if request.client else None
    if not forwarder_is_trusted and direct not in settings.trusted_proxies:
        return direct
    for part in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        try:
            address = str(ipaddress.ip_address(part.strip()))
        except ValueError:
            break
        if address not in settings.trusted_proxies:
            return address
    # A service that names no client: counting its own address would lock everybody out.
    return None if forwarder_is_trusted else direct
