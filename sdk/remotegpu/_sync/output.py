# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Following what a task writes, from one attempt to the next."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Generator, Mapping
from contextlib import closing

from remotegpu._sync.stream import messages
from remotegpu._sync.transport import SyncTransport


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
