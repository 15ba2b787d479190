"""The router that every slice uses."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from remotegpu_server import idempotency


class _Route(APIRoute):
    """Stores the answers of requests with an Idempotency-Key before their transaction commits."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            response = await handle(request)
            await idempotency.store_answer(request, response)
            return response

        return answer


def api_router(tag: str) -> APIRouter:
    """A router whose paths are written in full (``/v1/images``)."""
    return APIRouter(tags=[tag], route_class=_Route)
