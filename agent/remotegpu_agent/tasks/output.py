"""Ships an attempt's output in numbered pieces from its file, and what it says of itself."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import stat
from contextlib import suppress

from remotegpu import errors
from remotegpu_agent import fault_points
from remotegpu_agent.tasks.folders import Folder, Piece
from remotegpu_agent.tasks.link import Link

log = logging.getLogger(__name__)

PIECE_BYTES = 2**20
LOOK_EVERY_S = 0.1
"""Output of less than a whole piece waits so long for more."""
IDLE_LOOK_EVERY_S = 0.25
PROGRESS_BYTES = 4096
PROGRESS_EVERY_S = 1.0


class Shipper:
    """The output of one attempt. Where it was after a restart, the folder says."""

    def __init__(self, folder: Folder, link: Link, *, cap_bytes: int) -> None:
        self._folder = folder
        self._link = link
        self._cap = cap_bytes
        self._complete = asyncio.Event()
        self._sequence = max(0, folder.pieces() - 1)
        """The newest one may or may not have arrived: it is sent again, the same."""
        self._recent: dict[int, Piece] = {}

    def complete(self) -> None:
        """Nothing more will be written: :meth:`run` returns when the rest has arrived."""
        self._complete.set()

    async def run(self) -> None:
        """Raises Refused. Output that the server will never take is given up, and the log says so."""
        try:
            while True:
                ended = self._complete.is_set()
                piece = self._next()
                if piece is not None:
                    await self._send(piece)
                elif ended:
                    return
                else:
                    await self._wait(IDLE_LOOK_EVERY_S)
        except errors.ApiError as error:
            log.error("output of %s: the server does not take it: %s", self._folder.attempt_id, error)

    def _next(self) -> Piece | None:
        """The piece with the present number: as it was begun, else what is new in the file."""
        begun = self._piece(self._sequence)
        if begun is not None:
            return begun
        last = self._piece(self._sequence - 1) if self._sequence else None
        if last is not None and last.truncated:
            return None
        offset = last.offset + last.size if last is not None else 0
        written = self._written()
        size = min(PIECE_BYTES, min(written, self._cap) - offset)
        truncated = written > self._cap and offset + size == self._cap
        if size <= 0 and not truncated:
            return None
        piece = Piece(offset, max(0, size), truncated)
        self._recent = {self._sequence: piece} | ({self._sequence - 1: last} if last is not None else {})
        try:
            self._folder.put_piece(self._sequence, piece)
        except OSError as error:  # what a full disk costs: a repeat after a crash that may not match
            log.warning(
                "output of %s: piece %s is not noted: %s", self._folder.attempt_id, self._sequence, error
            )
        return piece

    def _piece(self, sequence: int) -> Piece | None:
        return self._recent.get(sequence) or self._folder.piece(sequence)

    def _written(self) -> int:
        try:
            return self._folder.log.lstat().st_size
        except FileNotFoundError:
            return 0

    async def _send(self, piece: Piece) -> None:
        data = base64.b64encode(_read(self._folder, piece)).decode()
        reply = await self._link.logs(self._sequence, data, truncated=piece.truncated)
        fault_points.hit(fault_points.TASK_PIECE)
        if reply.next_sequence != self._sequence + 1:
            log.warning(
                "output of %s: the server wants piece %s", self._folder.attempt_id, reply.next_sequence
            )
        self._sequence = min(reply.next_sequence, self._sequence + 1)
        pause = reply.next_in_s
        if piece.size < PIECE_BYTES and not self._complete.is_set():
            pause = max(pause, LOOK_EVERY_S)
        if pause > 0:
            await self._wait(pause)

    async def _wait(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._complete.wait()


def _read(folder: Folder, piece: Piece) -> bytes:
    with folder.log.open("rb") as file:
        file.seek(piece.offset)
        return file.read(piece.size)


async def follow_progress(folder: Folder, link: Link) -> None:
    """Post what the task writes into its progress file, whenever it differs. Raises Refused."""
    told: tuple[float | None, str] | None = None
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        said = read_progress(folder)
        if said is None or said == told:
            continue
        told = said
        try:
            await link.progress(*said)
        except errors.ApiError as error:
            log.warning("progress of %s: %s", folder.attempt_id, error)


def read_progress(folder: Folder) -> tuple[float | None, str] | None:
    """``0.4 epoch 4`` -> part and message; ``None``: nothing was said. The file may be anything."""
    try:
        handle = os.open(folder.progress, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        text = os.read(handle, PROGRESS_BYTES).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(handle)
    line = (text.splitlines() or [""])[0].strip()
    if not line:
        return None
    first, _, rest = line.partition(" ")
    try:
        part = float(first)
    except ValueError:
        return None, line[:1024]
    return (min(1.0, max(0.0, part)) if part == part else None), rest.strip()[:1024]
