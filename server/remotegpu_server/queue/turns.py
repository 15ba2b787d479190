"""The pass over the queue: everybody who waits, environments and tasks alike, in one order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import structlog

from remotegpu.errors import StateConflict
from remotegpu.types.environments import Reason
from remotegpu_server import placement
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import tables
from remotegpu_server.environments.service import turns as environments
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.placing import Launch
from remotegpu_server.queue import order, waits
from remotegpu_server.queue import snapshot as snapshots
from remotegpu_server.reservations import enforcement as reservations
from remotegpu_server.tasks.service import turns as tasks

_log = structlog.get_logger(__name__)


async def place_pending(work: Work) -> None:
    """One pass: everybody in order, on one look at the fleet; a transaction for each that moves.

    What a request was refused for holds for equal requests behind it, so a long queue of few kinds is cheap.
    """
    async with work.session() as db:
        if not await order.waiting_ids(db):
            return
        snapshot = await snapshots.take(db)
    turn = _Pass(work, snapshot)
    ahead: list[snapshots.Waiting] = []
    for one in snapshot.waiting:
        with by_itself("queue", one.ask.id):
            still = await turn.decide(one, ahead)
            if still is not None:
                ahead.append(still)  # one that raises keeps nothing free for itself
        await asyncio.sleep(0)  # a long queue holds up no request to this process
    for (reason, message), task_ids in turn.news.items():
        with by_itself("queue", str(reason)):
            async with work.session() as db:
                await tasks.wait(db, task_ids=task_ids, reason=reason, message=message)
    if turn.messages:
        async with work.session() as db:
            await waits.store_messages(db, messages=turn.messages)


class _Pass:
    """What a pass has learned so far."""

    def __init__(self, work: Work, snapshot: snapshots.Snapshot) -> None:
        self._work = work
        self._launch = Launch(vault=work.vault, workload_url=work.settings.workload_url)
        self._snapshot = snapshot
        self._fleet = snapshot.fleet
        self._refused: dict[tuple[placement.Request, float | None], placement.Refusal] = {}
        """By what is asked for, and for how long: those of an array are alike."""
        self.messages: dict[str, str] = {}
        """New words for the same reason: no news for the event stream."""
        self.news: dict[tuple[Reason, str], list[str]] = defaultdict(list)
        """Tasks that wait for something else than before, by what that is."""

    @cached_property
    def _certain_s(self) -> dict[str, float]:
        return snapshots.certain_starts_s(self._snapshot)

    async def decide(
        self, one: snapshots.Waiting, before: Sequence[snapshots.Waiting]
    ) -> snapshots.Waiting | None:
        """Start it, or renew the reason why it waits. ``None``: it waits no more and is in nobody's way."""
        if one.kept == "due":
            return one  # the hub was asked; those behind leave alone the place that it has, or waits for
        kind = (one.request, one.runs_for_s)
        refusal = self._refused.get(kind) if one.active else None
        if refusal is None:
            ahead = snapshots.blockers(one, before, {} if one.runs_for_s is None else self._certain_s)
            found = self._choose(one, ahead)
            if not isinstance(found, placement.Refusal) and one.kept is not None and one.active:
                return await self._call_the_hub(one, found[0])
            if not one.active or not isinstance(found, placement.Refusal):
                return None if await self._act(one, ahead) else one
            refusal = found
            if refusal.reason is not Reason.RESERVED:
                self._refused[kind] = refusal
        await self._waits(one, refusal)
        return one

    def _choose(
        self, one: snapshots.Waiting, ahead: Sequence[placement.Ahead]
    ) -> tuple[placement.Choice, ...] | placement.Refusal:
        found = placement.choose_all(one.request, self._fleet, ahead=ahead)
        kept = self._snapshot.promises.withheld_from(one.ask)
        if not kept or isinstance(found, placement.Refusal):
            return found
        allowed = placement.choose_all(one.request, reservations.without(self._fleet, kept), ahead=ahead)
        return reservations.refusal(kept) if isinstance(allowed, placement.Refusal) else allowed

    async def _call_the_hub(self, one: snapshots.Waiting, found: placement.Choice) -> snapshots.Waiting:
        try:
            async with self._work.session() as db:
                await environments.call_the_hub(db, environment_id=one.ask.id)
        except StateConflict:
            _log.info("queue_item_moved", ask=one.ask.id)
            return one
        return replace(one, place=found.hold)

    async def _act(self, one: snapshots.Waiting, ahead: Sequence[placement.Ahead]) -> bool:
        try:
            async with self._work.session() as db:
                if isinstance(one.ask, tables.Task):
                    gone = await tasks.start(db, task_id=one.ask.id, ahead=ahead, launch=self._launch)
                else:
                    gone = await environments.start(
                        db, environment_id=one.ask.id, ahead=ahead, launch=self._launch
                    )
                self._fleet = await capacity.fleet(db)
                return gone
        except StateConflict:
            _log.info("queue_item_moved", ask=one.ask.id)
            return False

    async def _waits(self, one: snapshots.Waiting, refusal: placement.Refusal) -> None:
        row = one.ask
        if row.reason == refusal.reason:
            if row.message != refusal.detail:
                self.messages[row.id] = refusal.detail
            return
        if isinstance(row, tables.Task):
            self.news[refusal.reason, refusal.detail].append(row.id)
            return
        try:
            async with self._work.session() as db:
                reason, message = refusal.reason, refusal.detail
                await environments.wait(db, environment_id=row.id, reason=reason, message=message)
        except StateConflict:
            _log.info("queue_item_moved", ask=row.id)


LOOP = Loop(name="queue", every_s=lambda settings: settings.queue_tick_s, run=place_pending, wake="queue")
