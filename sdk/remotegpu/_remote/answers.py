"""What comes back: the output without the lines that carry the result, and the result in those lines."""

from __future__ import annotations

import base64
import pickle
import zlib
from dataclasses import dataclass, field
from typing import Any

from remotegpu._remote.entry import MARK
from remotegpu.errors import RemoteFailed, RemoteMismatch


class Output:
    """Takes output in pieces, hands on what people may see, keeps the result: lines with the nonce of the
    script. Without one nothing is kept, and lines of results are still not shown.
    """

    def __init__(self, nonce: str = "") -> None:
        self._nonce = nonce
        self._held = ""
        self._lines: dict[int, str] = {}
        self._count: int | None = None

    def shown(self, piece: str) -> str:
        """What of it is for people. What could be the beginning of a result waits for the next piece."""
        text, self._held = self._held + piece, ""
        seen: list[str] = []
        while text:
            before, mark, after = text.partition(MARK)
            if not mark:
                keep = _beginning_of_mark(text)
                seen.append(text[: len(text) - keep])
                self._held = text[len(text) - keep :]
                break
            seen.append(before)
            line, end, text = after.partition("\n")
            if not end:
                self._held = MARK + line
                break
            self._take(line)
        return "".join(seen)

    def rest(self) -> str:
        """What still waited when the output ended."""
        held, self._held = self._held, ""
        return "" if held.startswith(MARK) else held

    def _take(self, line: str) -> None:
        try:
            nonce, number, count, chunk = line.split(" ")
            place, whole = int(number), int(count)
        except ValueError:
            return  # a line of somebody else that begins like ours
        if not self._nonce or nonce != self._nonce:
            return  # whoever printed it does not know the script: unpickling it would run what they want
        if place == 0:
            self._lines.clear()  # of another attempt
        self._count = whole
        self._lines[place] = chunk

    def answer(self) -> Answer | None:
        """The result; ``None`` when it did not come, or not whole."""
        if self._count is None or len(self._lines) != self._count:
            return None
        packed = base64.b64decode("".join(self._lines[place] for place in range(self._count)))
        return Answer(pickle.loads(zlib.decompress(packed)))  # the caller's own script wrote it: the nonce


def _beginning_of_mark(text: str) -> int:
    for length in range(min(len(MARK) - 1, len(text)), 0, -1):
        if text.endswith(MARK[:length]):
            return length
    return 0


class RemoteTraceback(Exception):
    """The traceback of the other side, shown as the cause."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text

    def __str__(self) -> str:
        return f"\n{self._text}"


@dataclass
class Answer:
    """How a call ended."""

    said: dict[str, Any] = field(repr=False)

    @property
    def returned(self) -> bool:
        """The call came to its end."""
        return self.said["kind"] in ("value", "file")

    @property
    def file(self) -> tuple[str, int] | None:
        """Checksum and size of the file in which the value is; ``None``: it is here."""
        return (self.said["sha256"], self.said["size_bytes"]) if self.said["kind"] == "file" else None

    def error(self) -> Exception | None:
        """The exception of the other side, with its traceback as the cause."""
        kind = self.said["kind"]
        if kind == "mismatch":
            return RemoteMismatch(self.said["text"])
        if kind != "error":
            return None
        text = str(self.said["traceback"])
        found: object = None
        if self.said["exception"] is not None:
            try:
                found = pickle.loads(self.said["exception"])
            except Exception:  # noqa: BLE001  its class is not here: the text has to do
                found = None
        error = found if isinstance(found, Exception) else RemoteFailed(text.rstrip().rpartition("\n")[2])
        error.__cause__ = RemoteTraceback(text)
        return error

    def value(self) -> Any:
        """What was returned; of a cell, its names."""
        return pickle.loads(self.said["value"])

    @property
    def left(self) -> dict[str, str]:
        """Names of a cell that could not travel, with the reason."""
        return dict(self.said["left"])
