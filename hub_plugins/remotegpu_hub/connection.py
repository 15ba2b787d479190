"""One connection pool to the RemoteGPU server for the hub process, shared by authenticator and handlers."""

from __future__ import annotations

from functools import lru_cache

from remotegpu import AsyncClient


@lru_cache(maxsize=4)
def shared_client(url: str, token: str) -> AsyncClient:
    """The client of this process; lives as long as the process does."""
    return AsyncClient(url=url, token=token, timeout_s=15)
