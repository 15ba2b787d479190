"""Following an attempt's output: what there is, then what comes, until nothing more can come.

A position is ``<attempt>.<rank>.<byte offset>``; a reader that comes back with it misses nothing and
reads nothing twice, at whichever server. Hints make it fast, looking by itself makes it right.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import ApiError, Invalid
from remotegpu.types.tasks import AttemptStatus, TaskLogEnd
from remotegpu_server.authz import Action, Actor
from remotegpu_server.blobs import Blobs
from remotegpu_server.db.notify import Signals
from remotegpu_server.outputs import queries
from remotegpu_server.outputs.logs import part
from remotegpu_server.tasks.lifecycle import OUTPUT
from remotegpu_server.tasks.service import read

KEEP_ALIVE_S = 15.0
RECHECK_S = 2.0
MESSAGE_BYTES = 2**18
_POSITION = re.compile(r"(\d{1,9})\.(\d{1,2})\.(\d{1,18})")


def parse_position(value: str) -> tuple[int, int, int]:
    """Attempt, rank and offset of a message's id. Raises ``Invalid``."""
    found = _POSITION.fullmatch(value)
    if found is None:
        raise Invalid("This is not the id of a message of this stream.", hint="Pass the last one, or none.")
    return int(found[1]), int(found[2]), int(found[3])


async def follow(
    sessions: async_sessionmaker[AsyncSession],
    signals: Signals,
    blobs: Blobs,
    *,
    identify: Callable[[AsyncSession], Awaitable[Actor]],
    task_id: str,
    attempt: int | None,
    rank: int,
    offset: int | None,
    tail_bytes: int | None,
) -> AsyncIterator[bytes]:
    """Server-sent events. ``end``: come back with ``Last-Event-ID``. ``done``: everything was said."""
    spoke_at = time.monotonic()
    with signals.watch(OUTPUT.format(task_id=task_id)) as watch:
        while True:
            try:
                async with sessions() as db:
                    actor = await identify(db)
                    task = await read.visible_row(db, actor=actor, action=Action.TASK_LOGS, task_id=task_id)
                    found = await queries.look(db, task=task, attempt=attempt, rank=rank)
                if found.number and offset is None:
                    offset = 0 if tail_bytes is None else max(0, found.size_bytes - tail_bytes)
                    yield f"id: {found.number}.{rank}.{offset}\n\n".encode()
                if found.number:
                    attempt = found.number
                data = b"" if offset is None else await part(blobs, found, offset=offset, limit=MESSAGE_BYTES)
            except (ApiError, SQLAlchemyError, OSError) as error:
                code = error.error if isinstance(error, ApiError) else "unavailable"
                yield f"event: end\ndata: {code}\n\n".encode()
                return
            now = time.monotonic()
            if data:
                assert offset is not None, "there is an attempt"
                offset += len(data)
                spoke_at = now
                yield _frame(found.number, rank, offset, data)
                continue
            if found.complete:
                yield _done(found)
                return
            if now - spoke_at >= KEEP_ALIVE_S:
                spoke_at = now
                yield b": keep-alive\n\n"
            await watch.wait(RECHECK_S)
            if signals.stopping:
                return


def _frame(number: int, rank: int, offset: int, data: bytes) -> bytes:
    position = (number, rank, offset)
    return b"id: %d.%d.%d\nevent: output\ndata: %b\n\n" % (*position, base64.b64encode(data))


def _done(found: queries.Looked) -> bytes:
    end = TaskLogEnd(
        attempt=found.number,
        status=AttemptStatus(found.status) if found.status else None,
        size_bytes=found.size_bytes,
        truncated=found.truncated,
        more=found.more,
    )
    return f"event: done\ndata: {end.model_dump_json()}\n\n".encode()
