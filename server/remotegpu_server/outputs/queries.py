"""SQL of outputs that is used more than once."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import AttemptFinal, AttemptMismatch, LeaseExpired
from remotegpu.types.tasks import AttemptStatus
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.hosts.service import sessions as agent_sessions


@dataclass(frozen=True, slots=True)
class Writable:
    """An attempt that an agent writes about, and whether it may still add to it."""

    attempt: tables.Attempt
    released: bool

    def refuse(self) -> None:
        """Raise unless more of its output may come: it is claimed, and not released yet."""
        if self.attempt.status == AttemptStatus.ASSIGNED:
            raise AttemptFinal("The attempt was not claimed.", hint="Claim it first.")
        if self.attempt.status == AttemptStatus.LOST:
            raise LeaseExpired(
                "The attempt was given up: its host was silent for too long.",
                hint="End and remove what runs of it.",
            )
        if self.released:
            raise AttemptFinal("The attempt was released.", hint="Forget it.")


def is_released() -> ColumnElement[bool]:
    """Whether an attempt has ended and holds nothing any more: nothing can be added to it."""
    row, held = tables.Attempt, tables.Placement
    holds = select(held.id).where(held.attempt_id == row.id, held.released_at.is_(None)).exists()
    return row.finished_at.is_not(None) & ~holds


async def writable(db: AsyncSession, *, actor: Actor, attempt_id: str, epoch: int) -> Writable:
    """The attempt as its agent finds it, nothing locked. Raises ``EpochStale``, ``AttemptMismatch``."""
    authz.require(actor, Action.AGENT_REPORT)
    row, host = tables.Attempt, tables.Host
    found = await db.execute(
        select(row, is_released(), host.epoch)
        .join(host, host.id == row.host_id)
        .where(row.id == attempt_id, row.host_id == actor.host_id)
        .execution_options(populate_existing=True)
    )
    one = found.one_or_none()
    if one is None:
        raise AttemptMismatch("This host has no such attempt.", hint="End and remove what runs of it.")
    attempt, released, current = one
    if current != epoch:
        raise agent_sessions.stale(current)
    return Writable(attempt=attempt, released=released)


def same_session(epoch: int) -> ColumnElement[bool]:
    """For the UPDATE of an attempt: its agent has no newer session, and may still add to it."""
    row, host = tables.Attempt, tables.Host
    current = select(host.id).where(host.id == row.host_id, host.epoch == epoch).exists()
    return current & ~is_released() & (row.status != "lost")


@dataclass(frozen=True, slots=True)
class Looked:
    """An attempt's output at one moment, for readers."""

    number: int
    """0: there is no attempt of this number (yet)."""
    attempt_id: str | None
    status: str
    """Of the attempt."""
    task_status: str
    size_bytes: int
    truncated: bool
    complete: bool
    """Nothing more will come."""
    removed: bool
    more: bool
    """Another attempt follows, or may."""


async def look(db: AsyncSession, *, task: tables.Task, attempt: int | None, rank: int) -> Looked:
    """The attempt of this number, or the newest."""
    row = tables.Attempt
    newest = select(func.max(row.number)).where(row.task_id == task.id, row.rank == rank).scalar_subquery()
    found = await db.execute(
        select(row, is_released())
        .where(
            row.task_id == task.id, row.rank == rank, row.number == (newest if attempt is None else attempt)
        )
        .execution_options(populate_existing=True)
    )
    one = found.one_or_none()
    ended = task.finished_at is not None
    if one is None:
        return Looked(0, None, "", task.status, 0, False, complete=ended, removed=False, more=not ended)
    tried, released = one
    return Looked(
        number=tried.number,
        attempt_id=tried.id,
        status=tried.status,
        task_status=task.status,
        size_bytes=tried.log_bytes,
        truncated=tried.log_truncated,
        complete=released,
        removed=tried.output_removed_at is not None,
        more=not ended,
    )
