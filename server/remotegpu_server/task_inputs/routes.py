"""Endpoints of inputs of tasks, for people and for agents."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from remotegpu.types.tasks import TaskInput, TaskInputRoom
from remotegpu_server.deps import BlobsDep, Caller, Db, DetachedCaller, Sessions
from remotegpu_server.outputs import queries
from remotegpu_server.routing import api_router
from remotegpu_server.task_inputs import service

agent_router = api_router("agent", routine=True)
router = api_router("task_inputs", routine=True)

_BYTES = "application/octet-stream"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BYTES_IN = {"requestBody": {"required": True, "content": {_BYTES: _BINARY}}}
_BYTES_OUT: dict[int | str, dict[str, Any]] = {200: {"content": {_BYTES: _BINARY}}}


@router.get("/v1/task-inputs", summary="What inputs of tasks may have")
async def get_task_input_room(db: Db, caller: Caller) -> TaskInputRoom:
    """The largest input, and what those of the caller have together."""
    return await service.room(db, actor=caller)


@router.put("/v1/task-inputs/{sha256}", summary="Send an input of tasks", openapi_extra=_BYTES_IN)
async def upload_task_input(
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")],
    request: Request,
    caller: DetachedCaller,
    sessions: Sessions,
    blobs: BlobsDep,
    size_bytes: Annotated[int, Query(ge=1, lt=2**53)],
    offset: Annotated[int, Query(ge=0, lt=2**53)],
) -> TaskInput:
    """The next piece of a file, at most 1 MiB, before the tasks that read it. Any other piece is not stored,
    and the answer says where to go on. With the last one the checksum is compared; 409: send it anew.
    """
    return await service.store(
        sessions,
        blobs,
        request.app.state.fault_points,
        actor=caller,
        sha256=sha256,
        size_bytes=size_bytes,
        offset=offset,
        data=await request.body(),
    )


@agent_router.get(
    "/v1/agent/attempts/{attempt_id}/input", summary="Fetch the input of an attempt", responses=_BYTES_OUT
)
async def read_attempt_input(
    attempt_id: str,
    caller: DetachedCaller,
    sessions: Sessions,
    blobs: BlobsDep,
    epoch: Annotated[int, Query()],
    offset: Annotated[int, Query(ge=0, lt=2**53)],
) -> Response:
    """Its bytes from `offset` on, at most 4 MiB, before it starts; none at the end."""
    async with sessions() as db:
        found = await queries.writable(db, actor=caller, attempt_id=attempt_id, epoch=epoch)
        found.refuse()
        row = await service.find(db, attempt=found.attempt)
    size = min(service.HANDED_OUT_BYTES, max(0, row.size_bytes - offset))
    data = await blobs.read(service.blob_of(row.id), offset=offset, size=size)
    return Response(data, media_type=_BYTES, headers={"Cache-Control": "no-store"})
