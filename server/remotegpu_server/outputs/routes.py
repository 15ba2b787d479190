"""Endpoints of output and artifacts, for agents and for people."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Query
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from remotegpu.types.agent import ArtifactReply, AttemptLogs, AttemptLogsReply
from remotegpu.types.tasks import Artifact, TaskLogs
from remotegpu.types.wire import Page
from remotegpu_server import uploads
from remotegpu_server.authz import Action, Actor
from remotegpu_server.deps import (
    BlobsDep,
    Caller,
    Cursor,
    Db,
    DetachedCaller,
    Limit,
    Sessions,
    SignalsDep,
    identify,
)
from remotegpu_server.outputs import artifacts, logs, ranges, stream
from remotegpu_server.routing import api_router
from remotegpu_server.tasks.service import read

agent_router = api_router("agent", routine=True)
router = api_router("tasks")

_BYTES = "application/octet-stream"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BYTES_IN = {"requestBody": {"required": True, "content": {_BYTES: _BINARY}}}
_BYTES_OUT: dict[int | str, dict[str, Any]] = {
    200: {"content": {_BYTES: _BINARY}},
    206: {"content": {_BYTES: _BINARY}, "description": "The part that was asked for."},
}
_EVENT_STREAM = "text/event-stream"
_STREAM_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            _EVENT_STREAM: {
                "schema": {"type": "string"},
                "example": "id: 1.12\nevent: output\ndata: ZXBvY2ggMQo=\n\n",
            }
        }
    }
}

Attempt = Annotated[
    int | None, Query(ge=1, le=2**31, description="Number of the attempt; left out: the newest.")
]
Rank = Annotated[int, Query(ge=0, le=63, description="Which host of a task on several.")]
Offset = Annotated[int, Query(ge=0, lt=2**53)]
Tail = Annotated[int | None, Query(ge=0, lt=2**53, description="The newest so many bytes.")]


@agent_router.post("/v1/agent/attempts/{attempt_id}/logs", summary="Hand in output")
async def append_logs(
    attempt_id: str,
    body: AttemptLogs,
    request: Request,
    caller: DetachedCaller,
    sessions: Sessions,
    blobs: BlobsDep,
) -> AttemptLogsReply:
    """The next piece, at most 1 MiB; until the attempt is released. Any other piece is not stored, and the
    answer says which one is next.
    """
    return await logs.append(
        sessions, blobs, request.app.state.fault_points, actor=caller, attempt_id=attempt_id, body=body
    )


@agent_router.put(
    "/v1/agent/attempts/{attempt_id}/artifacts", summary="Hand in a file", openapi_extra=_BYTES_IN
)
async def upload_artifact(
    attempt_id: str,
    request: Request,
    caller: DetachedCaller,
    sessions: Sessions,
    blobs: BlobsDep,
    epoch: Annotated[int, Query()],
    path: Annotated[str, Query(min_length=1, max_length=1024, description="Below `/output`.")],
    size_bytes: Annotated[int, Query(ge=0, lt=2**53)],
    sha256: Annotated[str, Query(pattern="^[0-9a-f]{64}$")],
    offset: Offset,
) -> ArtifactReply:
    """The next piece of a file, at most 1 MiB; until the attempt is released. Any other piece is not stored,
    and the answer says where to go on. With the last one the checksum is compared; 409: send it anew.
    """
    return await artifacts.store(
        sessions,
        blobs,
        request.app.state.fault_points,
        actor=caller,
        attempt_id=attempt_id,
        epoch=epoch,
        path=path,
        size_bytes=size_bytes,
        sha256=sha256,
        offset=offset,
        data=await request.body(),
    )


@router.get("/v1/tasks/{task_id}/artifacts", summary="Files that a task left")
async def list_task_artifacts(
    task_id: str,
    db: Db,
    caller: Caller,
    attempt: Annotated[int | None, Query(ge=1, le=2**31, description="Only of this one.")] = None,
    rank: Annotated[int | None, Query(ge=0, le=63, description="Only of this rank.")] = None,
    path: Annotated[str | None, Query(max_length=1024, description="Only with this path.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Artifact]:
    """What its attempts left in `/output`; the newest attempt first, then by path."""
    return await artifacts.list_artifacts(
        db, actor=caller, task_id=task_id, attempt=attempt, rank=rank, path=path, limit=limit, cursor=cursor
    )


@router.get(
    "/v1/tasks/{task_id}/artifacts/{artifact_id}",
    summary="Download a file that a task left",
    responses=_BYTES_OUT,
)
async def download_task_artifact(
    task_id: str,
    artifact_id: str,
    db: Db,
    caller: Caller,
    blobs: BlobsDep,
    range_: Annotated[str | None, Header(alias="Range", max_length=128)] = None,
    if_range: Annotated[str | None, Header(max_length=128)] = None,
    if_none_match: Annotated[str | None, Header(max_length=128)] = None,
) -> Response:
    """Its bytes, as an attachment; one `Range` is honoured. The `ETag` is the SHA-256 of the whole."""
    row = await artifacts.find(db, actor=caller, task_id=task_id, artifact_id=artifact_id)
    headers = ranges.headers_of(row.path, sha256=row.sha256)
    if if_none_match == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    part = ranges.wanted(range_, size=row.size_bytes) if if_range in (None, headers["ETag"]) else None
    start, end = part or (0, row.size_bytes)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{row.size_bytes}"
    return StreamingResponse(
        uploads.content(blobs, artifacts.blob_of(row), start=start, end=end),
        status_code=206 if part else 200,
        media_type=_BYTES,
        headers=headers,
    )


@router.get("/v1/tasks/{task_id}/logs", summary="Output of a task")
async def read_task_logs(
    task_id: str,
    db: Db,
    caller: Caller,
    blobs: BlobsDep,
    attempt: Attempt = None,
    rank: Rank = 0,
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=1, le=2**20, description="Most bytes.")] = 2**18,
    tail_bytes: Tail = None,
) -> TaskLogs:
    """Bytes from `offset` on, or the newest `tail_bytes`; both streams as they came."""
    return await logs.read_logs(
        db,
        blobs,
        actor=caller,
        task_id=task_id,
        attempt=attempt,
        rank=rank,
        offset=offset,
        limit=limit,
        tail_bytes=tail_bytes,
    )


@router.get(
    "/v1/tasks/{task_id}/logs:follow", summary="Follow the output of a task", responses=_STREAM_ANSWER
)
async def follow_task_logs(
    task_id: str,
    request: Request,
    sessions: Sessions,
    signals: SignalsDep,
    blobs: BlobsDep,
    caller: DetachedCaller,
    attempt: Attempt = None,
    rank: Rank = 0,
    tail_bytes: Tail = None,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> StreamingResponse:
    """Server-sent events: `output` with base64 bytes, its id is `<attempt>.<rank>.<offset>` and the place to
    come back to; `done` when the attempt has ended and everything was said. It waits for an attempt to be
    there.
    """
    async with sessions() as db:
        await read.visible_row(db, actor=caller, action=Action.TASK_LOGS, task_id=task_id)
    offset = None
    if last_event_id:
        attempt, rank, offset = stream.parse_position(last_event_id)
    body = stream.follow(
        sessions,
        signals,
        blobs,
        identify=_identify_again(request),
        task_id=task_id,
        attempt=attempt,
        rank=rank,
        offset=offset,
        tail_bytes=tail_bytes,
    )
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body, media_type=_EVENT_STREAM, headers=headers)


def _identify_again(request: Request) -> Any:
    async def ask(db: AsyncSession) -> Actor:
        return await identify(request, db)

    return ask
