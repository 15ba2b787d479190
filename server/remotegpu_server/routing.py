"""The router that every slice uses."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog
from fastapi import APIRouter
from fastapi.routing import APIRoute
from psycopg import errors as pg_errors
from pydantic.warnings import UnsupportedFieldAttributeWarning
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response

from remotegpu.errors import ServerError
from remotegpu_server import idempotency
from remotegpu_server.audit import service as audit
from remotegpu_server.error_answers import ERROR_RESPONSES, api_error_of

ATTEMPTS = 3
"""Of a request whose transaction the database chose to end in favour of another's."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_log = structlog.get_logger(__name__)


class _Route(APIRoute):
    """Stores the audit record and, under an Idempotency-Key, the answer, before the transaction commits."""

    routine = False
    """True: its requests are too many and too alike for the audit trail."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.routine = self.routine or getattr(self.endpoint, "is_dry_run", False)
        if self.body_field is not None:
            _build_now(self.body_field)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        resource_type = str(self.tags[0])
        action = f"{resource_type}.{self.name}"

        async def answer(request: Request) -> Response:
            detached = audit.begin()
            try:
                response = await _in_few_attempts(request, handle)
            except Exception as error:
                refusal = api_error_of(error) or ServerError("The server failed.")
                if not isinstance(error, idempotency.Replay):
                    await audit.record_refused(
                        request,
                        refusal,
                        resource_type=resource_type,
                        action=action,
                        routine=self.routine,
                        detached=detached,
                    )
                raise
            await audit.record_done(
                request,
                resource_type=resource_type,
                action=action,
                status=response.status_code,
                routine=self.routine,
                detached=detached,
            )
            await idempotency.store_answer(request, response)
            return response

        return answer


async def _in_few_attempts(
    request: Request, handle: Callable[[Request], Coroutine[Any, Any, Response]]
) -> Response:
    """Everything anew after a deadlock or a serialisation failure: all effects went with the transaction.

    Only where the request has one transaction for all of them. It keeps its body for the next attempt.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return await handle(request)
        except DBAPIError as error:
            db: AsyncSession | None = getattr(request.state, "db", None)
            if db is None or not isinstance(error.orig, _CHOSEN_TO_END):
                raise
            await db.rollback()  # gives its connection back: nobody holds two
            _log.info("request_retried", attempt=attempt, error=type(error.orig).__name__)
        await asyncio.sleep(random.uniform(0.01, 0.05) * attempt)  # noqa: S311
    return await handle(request)


_CHOSEN_TO_END = (pg_errors.DeadlockDetected, pg_errors.SerializationFailure)


def _build_now(field: Any) -> None:
    """Build the validator of a body here, where FastAPI's harmless warning can be silenced.

    Wire types defer their build, so FastAPI's own silencing around the construction misses it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UnsupportedFieldAttributeWarning)
        field._type_adapter.rebuild()


class _RoutineRoute(_Route):
    """For what machines send every few seconds: a record each would bury what people did."""

    routine = True


def dry_run(endpoint: Endpoint) -> Endpoint:
    """Marks the endpoint of a POST that changes nothing; below the router's decorator. A form asks it at
    every keystroke, so it leaves no audit record.
    """
    endpoint.is_dry_run = True  # type: ignore[attr-defined]
    return endpoint


def api_router(tag: str, *, routine: bool = False) -> APIRouter:
    """A router whose paths are written in full (``/v1/images``)."""
    route_class = _RoutineRoute if routine else _Route
    return APIRouter(tags=[tag], route_class=route_class, responses=ERROR_RESPONSES)
