# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""What a task writes, followed from one attempt to the next; and the files that it leaves."""

from __future__ import annotations

import base64
import codecs
import json
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path

from remotegpu import _progress
from remotegpu._partial import Partial
from remotegpu._protocol import Reconnects, segment
from remotegpu._sync.stream import SILENCE_S, TRANSIENT, messages
from remotegpu._sync.transport import SyncTransport
from remotegpu.errors import RemoteGPUError
from remotegpu.types.tasks import Artifact, ArtifactDownload


def followed(
    transport: SyncTransport,
    path: str,
    *,
    attempt: int | None,
    params: Mapping[str, object],
    give_up_after_s: float,
) -> Generator[str, None, None]:
    """The output of one attempt, or without one of all that follow, as text; what is no UTF-8 is replaced."""
    wanted = attempt
    while True:
        text = codecs.getincrementaldecoder("utf-8")("replace")
        found = messages(
            transport, path, params={**params, "attempt": wanted}, after=None, give_up_after_s=give_up_after_s
        )
        end: dict[str, object] = {}
        with closing(found):
            for message in found:
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


def download(
    transport: SyncTransport,
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
                    for block in _blocks(transport, artifact, partial):
                        partial.write(block)
                        reconnects.received()
                        show(_so_far(artifact, partial))
                except TRANSIENT as error:
                    failure = error
                if partial.received_bytes < artifact.size_bytes:
                    time.sleep(reconnects.pause_s(failure))
        return partial.finish()
    finally:
        partial.close()


def _blocks(transport: SyncTransport, artifact: Artifact, partial: Partial) -> Generator[bytes, None, None]:
    headers = {"Range": f"bytes={partial.received_bytes}-", "If-Range": f'"{artifact.sha256}"'}
    with transport.stream(
        f"/v1/tasks/{segment(artifact.task_id)}/artifacts/{segment(artifact.id)}",
        params={},
        headers=headers if partial.received_bytes else {},
        silence_s=SILENCE_S,
        accept="application/octet-stream",
    ) as response:
        if partial.received_bytes and response.status_code != 206:
            partial.restart()
        for block in response.iter_bytes():
            yield block


def _so_far(artifact: Artifact, partial: Partial) -> ArtifactDownload:
    return ArtifactDownload(
        path=artifact.path, received_bytes=partial.received_bytes, size_bytes=artifact.size_bytes
    )
