"""What a task writes, followed from one attempt to the next; and the files that it leaves."""

from __future__ import annotations

import asyncio
import base64
import codecs
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

from remotegpu import _progress
from remotegpu._async.stream import SILENCE_S, TRANSIENT, messages
from remotegpu._async.transport import AsyncTransport
from remotegpu._partial import Partial
from remotegpu._protocol import Reconnects, segment
from remotegpu.errors import RemoteGPUError, StateConflict
from remotegpu.types.tasks import Artifact, ArtifactDownload, TaskInput

_PIECE_BYTES = 2**20


async def followed(
    transport: AsyncTransport,
    path: str,
    *,
    attempt: int | None,
    params: Mapping[str, object],
    give_up_after_s: float,
) -> AsyncGenerator[str, None]:
    """The output of one attempt, or without one of all that follow, as text; what is no UTF-8 is replaced."""
    wanted = attempt
    while True:
        text = codecs.getincrementaldecoder("utf-8")("replace")
        found = messages(
            transport, path, params={**params, "attempt": wanted}, after=None, give_up_after_s=give_up_after_s
        )
        end: dict[str, object] = {}
        async with aclosing(found):
            async for message in found:
                if message is None:
                    continue
                if message.event == "done":
                    end = json.loads(message.data)
                    break
                piece = text.decode(base64.b64decode(message.data))
                if piece:
                    yield piece
        rest = text.decode(b"", True)
        if rest:
            yield rest
        if attempt is not None or not end["more"]:
            return
        wanted = int(str(end["attempt"])) + 1
        params = {name: value for name, value in params.items() if name != "tail_bytes"}


async def download(
    transport: AsyncTransport,
    artifact: Artifact,
    target: Path,
    *,
    progress: _progress.Choice[ArtifactDownload],
    give_up_after_s: float,
) -> Path:
    """The file at its place, whole and right; goes on where an earlier try stopped."""
    partial = Partial(target, sha256=artifact.sha256)
    reconnects = Reconnects(give_up_after_s=give_up_after_s)
    try:
        with _progress.display(progress) as show:
            while partial.received_bytes < artifact.size_bytes:
                failure: RemoteGPUError | None = None
                try:
                    async for block in _blocks(transport, artifact, partial):
                        partial.write(block)
                        reconnects.received()
                        show(_so_far(artifact, partial))
                except TRANSIENT as error:
                    failure = error
                if partial.received_bytes < artifact.size_bytes:
                    await asyncio.sleep(reconnects.pause_s(failure))
        return partial.finish()
    finally:
        partial.close()


async def upload(
    send: Callable[..., Awaitable[TaskInput]],
    file: BinaryIO,
    *,
    progress: _progress.Choice[TaskInput],
    give_up_after_s: float,
) -> TaskInput:
    """All of a file, in pieces, from where an earlier try stopped."""
    sha256, size_bytes = _content_of(file)
    reconnects = Reconnects(give_up_after_s=give_up_after_s)
    offset: int | None = None
    wrong = False
    with _progress.display(progress) as show:
        while True:
            failure: RemoteGPUError | None = None
            data = b""
            if offset is not None:
                file.seek(offset)
                data = file.read(_PIECE_BYTES)
            try:
                sent = await send(sha256, size_bytes=size_bytes, offset=offset or 0, data=data)
            except TRANSIENT as error:
                failure, offset = error, None
            except StateConflict:
                if wrong:
                    raise
                wrong, offset = True, 0
            else:
                reconnects.received()
                show(sent)
                if sent.complete:
                    return sent
                offset = sent.received_bytes
            if failure is not None:
                await asyncio.sleep(reconnects.pause_s(failure))


def _content_of(file: BinaryIO) -> tuple[str, int]:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(_PIECE_BYTES):
        digest.update(block)
    return digest.hexdigest(), file.tell()


async def _blocks(
    transport: AsyncTransport, artifact: Artifact, partial: Partial
) -> AsyncGenerator[bytes, None]:
    headers = {"Range": f"bytes={partial.received_bytes}-", "If-Range": f'"{artifact.sha256}"'}
    async with transport.stream(
        f"/v1/tasks/{segment(artifact.task_id)}/artifacts/{segment(artifact.id)}",
        params={},
        headers=headers if partial.received_bytes else {},
        silence_s=SILENCE_S,
        accept="application/octet-stream",
    ) as response:
        if partial.received_bytes and response.status_code != 206:
            partial.restart()
        async for block in response.aiter_bytes():
            yield block


def _so_far(artifact: Artifact, partial: Partial) -> ArtifactDownload:
    return ArtifactDownload(
        path=artifact.path, received_bytes=partial.received_bytes, size_bytes=artifact.size_bytes
    )
