"""The one module that imports httpx. Only names that httpx2 has too, so that switching is this file."""

from __future__ import annotations

from httpx import (
    ASGITransport,
    AsyncBaseTransport,
    AsyncClient,
    BaseTransport,
    Client,
    ConnectError,
    ConnectTimeout,
    DecodingError,
    PoolTimeout,
    Request,
    RequestError,
    Response,
    Timeout,
    TimeoutException,
)

__all__ = [
    "ASGITransport",
    "AsyncBaseTransport",
    "AsyncClient",
    "BaseTransport",
    "Client",
    "ConnectError",
    "ConnectTimeout",
    "DecodingError",
    "PoolTimeout",
    "Request",
    "RequestError",
    "Response",
    "Timeout",
    "TimeoutException",
]
