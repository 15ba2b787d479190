"""The one shape of an error: ``{error, detail, hint, request_id, data}``."""

from __future__ import annotations

import math
from typing import Any

import psycopg
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from remotegpu.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    ServerError,
    Unauthorized,
    Unavailable,
)
from remotegpu.types.wire import ErrorBody
from remotegpu_server.db.session import violated_constraint
from remotegpu_server.idempotency import Replay

REQUEST_ID_HEADER = "X-Request-Id"

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    error.status: {"model": ErrorBody, "description": error.__doc__ or ""}
    for error in (
        BadRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        PayloadTooLarge,
        Invalid,
        RateLimited,
        ServerError,
        Unavailable,
    )
}
"""What every route may answer besides its success, for the OpenAPI document."""


def answer(error: ApiError, request_id: str) -> JSONResponse:
    """The response for an error."""
    body = ErrorBody(
        error=error.error, detail=error.detail, hint=error.hint, request_id=request_id, data=error.data
    )
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.http_status == Unauthorized.status:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body.model_dump(mode="json"), status_code=error.http_status, headers=headers)


def api_error_of(error: Exception) -> ApiError | None:
    """The error that a client should see for an exception of a library, if it is one we expect."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _http(error)
    if isinstance(error, IntegrityError):
        name = violated_constraint(error)
        return Conflict(
            "The request does not fit the present state.", data={"constraint": name} if name else {}
        )
    if isinstance(error, DataError):
        return Invalid("A value cannot be stored, such as a text with a NUL character.", data={"errors": []})
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    gone = (OperationalError, InterfaceError, PoolTimeout, psycopg.OperationalError, ConnectionError)
    if lost or isinstance(error, gone):
        return Unavailable("The database does not answer.", retry_after_s=1)
    return None


def install(app: FastAPI) -> None:
    """Let every error of the app leave in this shape."""

    async def render(request: Request, error: Exception) -> Response:
        known = api_error_of(error)
        if known is None:
            raise error
        return answer(known, request.state.request_id)

    async def replay(_request: Request, error: Exception) -> Response:
        if not isinstance(error, Replay):
            raise error
        return Response(error.body or None, status_code=error.status, media_type="application/json")

    for kind in (ApiError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, render)
    app.add_exception_handler(Replay, replay)


def _invalid(error: RequestValidationError) -> ApiError:
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return BadRequest("The body is not valid JSON.")
    # Never the input itself: it may be a password.
    listed = [
        {"field": ".".join(str(part) for part in problem["loc"]), "message": problem["msg"]}
        for problem in problems[:50]
    ]
    first = listed[0]
    return Invalid(f"{first['field']}: {first['message']}", data={"errors": listed})


def _http(error: HTTPException) -> ApiError:
    if error.status_code == NotFound.status:
        return NotFound("There is nothing at this path.")
    kind = BadRequest if error.status_code < ServerError.status else ServerError
    return kind(str(error.detail), status=error.status_code)
