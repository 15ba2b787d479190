"""Server-sent events, from bytes to messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from remotegpu.errors import UnexpectedAnswer

LONGEST_MESSAGE = 4 * 2**20
"""Bytes. Something that sends more without a blank line is not an event stream."""


class Message(NamedTuple):
    """One dispatched message."""

    id: str | None
    event: str
    data: bytes


class Decoder:
    """Feeds on chunks as they come. Splits at line feeds only: text inside JSON may hold other separators
    (U+2028, form feed) at which ``str.splitlines`` and httpx's line iterator would cut a message in two.
    """

    def __init__(self) -> None:
        self.last_id: str | None = None
        """Where the stream is, also when the server only said so and sent no message."""
        self._rest = b""
        self._id: str | None = None
        self._event = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that `chunk` completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            message = self._line(line.removesuffix(b"\r"))
            if message is not None:
                yield message
        if len(self._rest) + sum(map(len, self._data)) > LONGEST_MESSAGE:
            raise UnexpectedAnswer("The event stream sent a message without end.")

    def _line(self, line: bytes) -> Message | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode(errors="replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode(errors="replace")
        return None

    def _dispatch(self) -> Message | None:
        self.last_id = self._id
        data, event = self._data, self._event
        self._data, self._event = [], ""
        return Message(self._id, event or "message", b"\n".join(data)) if data else None
