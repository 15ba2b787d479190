"""The output of attempts: pieces come in, ranges go out.

A piece is written to the file before the row tells of it, at the place that the row names; nothing is
locked meanwhile. The UPDATE counts it only if the row still stands there, so of two equal pieces one counts,
and after a crash between file and row the piece comes again and is written over itself. However an agent cuts
its output, the bytes at a place are always the same: two writers cannot spoil each other's.
"""

from __future__ import annotations

import base64
import binascii

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from remotegpu.errors import Invalid, NotFound, PayloadTooLarge
from remotegpu.types.agent import AttemptLogs, AttemptLogsReply
from remotegpu.types.tasks import TaskLogs
from remotegpu_server.authz import Action, Actor
from remotegpu_server.blobs import Blobs
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.fault_points import FaultPoints
from remotegpu_server.outputs import queries
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import TASK_LOG_CAP_BYTES
from remotegpu_server.tasks.lifecycle import OUTPUT
from remotegpu_server.tasks.service import read

PIECE_BYTES = 2**20
MARK = "\n[RemoteGPU: output above {cap} bytes was dropped here; the task went on]\n"


def blob_of(attempt_id: str) -> str:
    """Name of the blob with an attempt's output."""
    return f"logs/{attempt_id}"


async def append(
    sessions: async_sessionmaker[AsyncSession],
    blobs: Blobs,
    fault_points: FaultPoints,
    *,
    actor: Actor,
    attempt_id: str,
    body: AttemptLogs,
) -> AttemptLogsReply:
    """Store the next piece, exactly once. Any other piece is not stored; the answer names the next one."""
    data = _decoded(body.data)
    async with sessions() as db:
        found = await queries.writable(db, actor=actor, attempt_id=attempt_id, epoch=body.epoch)
        cap = await platform_settings.value(db, TASK_LOG_CAP_BYTES)
    if body.sequence != found.attempt.log_sequence:
        return AttemptLogsReply(next_sequence=found.attempt.log_sequence, next_in_s=0.0)
    found.refuse()
    kept, truncated = _kept(data, found.attempt, cap=cap, says_truncated=body.truncated)
    if kept:
        await blobs.write(blob_of(attempt_id), offset=found.attempt.log_bytes, data=kept)
        fault_points.reach("after_blob")
    row = tables.Attempt
    async with sessions() as db:
        counted = await db.scalar(
            update(row)
            .where(row.id == attempt_id, row.log_sequence == body.sequence, queries.same_session(body.epoch))
            .values(
                log_sequence=body.sequence + 1,
                log_bytes=found.attempt.log_bytes + len(kept),
                log_truncated=truncated,
            )
            .returning(row.log_sequence)
            .execution_options(synchronize_session=False)
        )
        if counted is None:  # an equal piece was faster, or the agent is not the one any more
            now = await queries.writable(db, actor=actor, attempt_id=attempt_id, epoch=body.epoch)
            if now.attempt.log_sequence == body.sequence:
                now.refuse()
            return AttemptLogsReply(next_sequence=now.attempt.log_sequence, next_in_s=0.0)
        notify(db, OUTPUT.format(task_id=found.attempt.task_id))
        await db.commit()
    return AttemptLogsReply(next_sequence=counted, next_in_s=0.0)


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("data is not base64.") from error
    if len(data) > PIECE_BYTES:
        raise PayloadTooLarge(f"A piece of output has at most {PIECE_BYTES} bytes.")
    return data


def _kept(data: bytes, attempt: tables.Attempt, *, cap: int, says_truncated: bool) -> tuple[bytes, bool]:
    """What of a piece is stored, and whether the output is cut from here on. The mark comes on top."""
    if attempt.log_truncated:
        return b"", True
    room = max(0, cap - attempt.log_bytes)
    if len(data) <= room and not says_truncated:
        return data, False
    kept = data[:room]
    return kept + MARK.format(cap=attempt.log_bytes + len(kept)).encode(), True


async def read_logs(
    db: AsyncSession,
    blobs: Blobs,
    *,
    actor: Actor,
    task_id: str,
    attempt: int | None,
    rank: int,
    offset: int,
    limit: int,
    tail_bytes: int | None,
) -> TaskLogs:
    """A part of an attempt's output: from a place, or the newest bytes."""
    task = await read.visible_row(db, actor=actor, action=Action.TASK_LOGS, task_id=task_id)
    found = await queries.look(db, task=task, attempt=attempt, rank=rank)
    if attempt is not None and found.attempt_id is None:
        raise NotFound("The task has no such attempt.")
    if found.removed:
        raise NotFound("The output was removed: the task ended long ago.")
    if tail_bytes is not None:
        offset = max(0, found.size_bytes - tail_bytes)
    await db.commit()  # the connection is not held while the file is read
    data = await part(blobs, found, offset=offset, limit=limit)
    return TaskLogs(
        task_id=task_id,
        attempt=found.number,
        rank=rank,
        offset=offset,
        next_offset=offset + len(data),
        size_bytes=found.size_bytes,
        truncated=found.truncated,
        complete=found.complete,
        data=base64.b64encode(data).decode(),
    )


async def part(blobs: Blobs, found: queries.Looked, *, offset: int, limit: int) -> bytes:
    """Bytes of an output that count; what a crash left behind them is not read."""
    size = min(limit, found.size_bytes - offset)
    if found.attempt_id is None or size <= 0:
        return b""
    return await blobs.read(blob_of(found.attempt_id), offset=offset, size=size)
