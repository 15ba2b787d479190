"""A try of a task: the attempts of one number, one for each rank on a host of its own.

They are placed together, none starts before all are ready, and the first that ends otherwise than well ends
the others. The task is told once, when the last one has ended. A task on one host is the case of one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from remotegpu.types.agent import GANG_PORTS
from remotegpu.types.environments import Reason
from remotegpu_server.attempts.lifecycle import GIVES_WAY, Status
from remotegpu_server.db import tables

ENDS = "gang-ends"
"""Hint that an attempt has ended while others of its try go on."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a try came to, or would if the rest were told to end now."""

    outcome: Status
    reason: Reason
    message: str
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Try:
    """Its attempts in the order of their ranks, with the names of their hosts."""

    attempts: Sequence[tables.Attempt]
    hosts: Sequence[str]

    @property
    def live(self) -> list[tables.Attempt]:
        return [one for one in self.attempts if one.finished_at is None]

    def failure(self) -> tuple[tables.Attempt, str] | None:
        """Whose end counts, with the name of its host; ``None``: none has ended otherwise than well.

        The gravest, and of these the first: when a host is lost or emptied, those that talk to it fail too,
        and sooner. Who was ended for another's sake does not count.
        """
        bad = [
            (_GRAVITY.index(outcome_of(one)), one.finished_at, one.rank, one, host)
            for one, host in zip(self.attempts, self.hosts, strict=True)
            if one.finished_at is not None
            and one.status != Status.SUCCEEDED
            and not (one.status == Status.CANCELLED and one.reason == Reason.GANG_FAILED)
        ]
        return min(bad)[3:] if bad else None

    def verdict(self) -> Verdict:
        """For the task, once all have ended."""
        found = self.failure()
        if found is None:
            first = self.attempts[0]
            return Verdict(Status(first.status), Reason(first.reason), first.message, first.exit_code)
        one, host = found
        message = one.message if len(self.attempts) == 1 else f"Rank {one.rank} on {host}: {one.message}"
        return Verdict(outcome_of(one), Reason(one.reason), message, one.exit_code)


def outcome_of(attempt: tables.Attempt) -> Status:
    """What the end of an attempt means for its task. One that was to give way and was lost has given way."""
    gave_way = attempt.status == Status.LOST and attempt.stop_reason in GIVES_WAY
    return Status.PREEMPTED if gave_way else Status(attempt.status)


_GRAVITY = (Status.PREEMPTED, Status.CANCELLED, Status.LOST, Status.TIMED_OUT, Status.FAILED)


async def of(db: AsyncSession, *, task: tables.Task) -> Try:
    """The present try of a locked task: nobody else writes ends of its attempts."""
    row = tables.Attempt
    found = await db.execute(
        select(row, tables.Host.name)
        .join(tables.Host, tables.Host.id == row.host_id)
        .where(row.task_id == task.id, row.number == task.generation)
        .order_by(row.rank)
        .execution_options(populate_existing=True)
    )
    rows = found.all()
    return Try(attempts=[one for one, _ in rows], hosts=[name for _, name in rows])


async def may_start(db: AsyncSession, *, task_id: str, number: int) -> bool:
    """Whether all attempts of a try are ready, also those that have ended since."""
    row = tables.Attempt
    waits = select(row.id).where(row.task_id == task_id, row.number == number, row.ready_at.is_(None))
    return await db.scalar(waits.limit(1)) is None


async def all_started(db: AsyncSession, *, task: tables.Task) -> bool:
    """Whether every attempt of the present try has begun to run, also those that have ended since."""
    row = tables.Attempt
    waits = select(row.id).where(
        row.task_id == task.id, row.number == task.generation, row.started_at.is_(None)
    )
    return await db.scalar(waits.limit(1)) is None


async def free_port(db: AsyncSession, *, address: str) -> int | None:
    """A port for rank 0 on a host with this address, which may be that of several hosts of one machine.

    ``None``: all are in use, by tries of which something may be left on any host: it would reach whoever
    has the port next. At random, since others may use some of them; of two that choose the same at once,
    the unique index takes one.
    """
    zero, left = aliased(tables.Attempt), aliased(tables.Attempt)
    taken = (
        select(zero.rendezvous_port)
        .join(left, (left.task_id == zero.task_id) & (left.number == zero.number))
        .where(zero.rendezvous_address == address, left.finished_at.is_(None) | left.lost_at.is_not(None))
    )
    free = sorted(set(GANG_PORTS) - set(await db.scalars(taken)))
    return random.choice(free) if free else None  # noqa: S311


async def to_end(db: AsyncSession, *, limit: int) -> list[str]:
    """Tasks with an attempt that ended otherwise than well, and others that were not told to end yet."""
    task, row = tables.Task, tables.Attempt
    of_try = (row.task_id == task.id) & (row.number == task.generation)
    failed = select(row.id).where(of_try, row.finished_at.is_not(None), row.status != "succeeded")
    untold = select(row.id).where(of_try, row.finished_at.is_(None), row.stop_reason.is_(None))
    found = await db.scalars(
        select(task.id)
        .where(task.nodes > 1, task.status.in_(["assigned", "running"]), failed.exists(), untold.exists())
        .order_by(task.id)
        .limit(limit)
    )
    return list(found.all())


async def held_up(db: AsyncSession, *, since: timedelta, limit: int) -> list[str]:
    """Tasks with an attempt that has been ready for so long, and one that is not and was not told to end."""
    task, row = tables.Task, tables.Attempt
    of_try = (row.task_id == task.id) & (row.number == task.generation) & row.finished_at.is_(None)
    ready = select(row.id).where(of_try, row.ready_at < func.now() - since)
    unready = select(row.id).where(of_try, row.ready_at.is_(None), row.stop_reason.is_(None))
    found = await db.scalars(
        select(task.id)
        .where(task.nodes > 1, task.status == "assigned", ready.exists(), unready.exists())
        .order_by(task.id)
        .limit(limit)
    )
    return list(found.all())
