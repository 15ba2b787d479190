"""For tests of programs that use the client: a client that talks to an ASGI app in this process."""

from __future__ import annotations

from typing import Any

from remotegpu import _http
from remotegpu._async.client import AsyncClient


def asgi_client(
    app: Any,
    token: str = "",
    *,
    url: str = "http://remotegpu.test",
    timeout_s: float = 30.0,
    max_retries: int = 0,
) -> AsyncClient:
    """A client bound to `app`: no socket, no retries, and nothing read from this machine's configuration.

    Answers come whole, so event streams need a real server. The app's lifespan is the caller's to run.
    """
    transport = _http.ASGITransport(app=app)
    return AsyncClient(url, token, timeout_s=timeout_s, max_retries=max_retries, transport=transport)
