"""Background passes: the queue, and starts that nobody reports about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import QuotaExceeded, StateConflict
from remotegpu.types.environments import EnvironmentStatus, Reason
from remotegpu_server import placement
from remotegpu_server.authz import SYSTEM
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import tables
from remotegpu_server.environments import lifecycle, queries
from remotegpu_server.environments.service import observe, placing, stop
from remotegpu_server.environments.service.placing import Launch
from remotegpu_server.hub_starts import service as hub_starts
from remotegpu_server.loops import Loop, Work
from remotegpu_server.notifications import service as notifications
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import ENVIRONMENT_START_SILENCE_S
from remotegpu_server.queue import snapshot as snapshots
from remotegpu_server.queue import waits
from remotegpu_server.reservations import enforcement as reservations

_log = structlog.get_logger(__name__)


async def place_pending(work: Work) -> None:
    """One pass: everybody in order, on one look at the fleet; a transaction for each that moves.

    What a request was refused for holds for equal requests behind it, so a long queue of few kinds is cheap.
    """
    async with work.session() as db:
        snapshot = await snapshots.take(db)
    turn = _Pass(work, snapshot)
    for place, one in enumerate(snapshot.waiting):
        await turn.decide(one, snapshot.waiting[:place])
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
        self._refused: dict[placement.Request, placement.Refusal] = {}
        self.messages: dict[str, str] = {}
        """New words for the same reason: no news for the event stream."""

    @cached_property
    def _certain_s(self) -> dict[str, float]:
        return snapshots.certain_starts_s(self._snapshot)

    async def decide(self, one: snapshots.Waiting, before: Sequence[snapshots.Waiting]) -> None:
        """Start it, or renew the reason why it waits."""
        if one.kept == "due":
            return  # the hub was asked; those behind leave alone what it waits for
        refusal = self._refused.get(one.request) if one.active and one.runs_for_s is None else None
        if refusal is None:
            ahead = snapshots.blockers(one, before, {} if one.runs_for_s is None else self._certain_s)
            found = self._choose(one, ahead)
            if not one.active or isinstance(found, placement.Choice):
                await self._act(one, ahead)
                return
            refusal = found
            if one.runs_for_s is None and refusal.reason is not Reason.RESERVED:
                self._refused[one.request] = refusal
        await self._waits(one, refusal)

    def _choose(
        self, one: snapshots.Waiting, ahead: Sequence[placement.Request]
    ) -> placement.Choice | placement.Refusal:
        found = placement.choose(one.request, self._fleet, ahead=ahead)
        kept = self._snapshot.promises.withheld_from(one.environment)
        if not kept or isinstance(found, placement.Refusal):
            return found
        allowed = placement.choose(one.request, reservations.without(self._fleet, kept), ahead=ahead)
        return allowed if isinstance(allowed, placement.Choice) else reservations.refusal(kept)

    async def _act(self, one: snapshots.Waiting, ahead: Sequence[placement.Request]) -> None:
        try:
            async with self._work.session() as db:
                if one.kept is not None and one.active:
                    await _call_the_hub(db, environment_id=one.environment.id)
                    return
                await place_one(db, environment_id=one.environment.id, ahead=ahead, launch=self._launch)
                self._fleet = await capacity.fleet(db)
        except StateConflict:
            _log.info("queue_item_moved", environment=one.environment.id)

    async def _waits(self, one: snapshots.Waiting, refusal: placement.Refusal) -> None:
        row = one.environment
        if row.reason == refusal.reason:
            if row.message != refusal.detail:
                self.messages[row.id] = refusal.detail
            return
        try:
            async with self._work.session() as db:
                environment = await queries.lock(db, environment_id=row.id)
                if environment is not None and environment.status == "pending":
                    await _still_waits(db, environment, refusal.reason, refusal.detail)
        except StateConflict:
            _log.info("queue_item_moved", environment=row.id)


async def _call_the_hub(db: AsyncSession, *, environment_id: str) -> None:
    """The turn of a kept place has come: the hub brings what a start needs, so it is asked first."""
    environment = await queries.lock(db, environment_id=environment_id)
    if environment is None or environment.status != "pending":
        return
    message = "Its turn has come; the hub is asked to start it."
    await hub_starts.set_due(db, environment_id=environment_id)
    await _still_waits(db, environment, Reason.HUB_START, message)
    await notifications.tell(
        db,
        user_ids=[environment.owner_id],
        kind="environment.turn",
        level="info",
        message=f"{environment.name}: {message}",
        subject_type="environment",
        subject_id=environment.id,
    )


async def place_one(
    db: AsyncSession, *, environment_id: str, ahead: Sequence[placement.Request], launch: Launch
) -> None:
    """Start one pending environment, or renew the reason why it waits. A suspended account starts nothing."""
    row, user, customer = tables.Environment, tables.User, tables.Customer
    found = (
        await db.execute(
            select(row, tables.Image, (user.status == "active") & (customer.status == "active"))
            .join(tables.Image, tables.Image.id == row.image_id)
            .join(user, user.id == row.owner_id)
            .join(customer, customer.id == user.customer_id)
            .where(row.id == environment_id, row.status == "pending", row.desired == "running")
            .with_for_update(read=True, of=(user, customer))
            .execution_options(populate_existing=True)
        )
    ).one_or_none()
    if found is None:
        return
    environment, image, active = found
    if not active:
        await stop.withdraw_waiting(db, environment_id=environment.id, actor=SYSTEM)
        return
    try:
        refusal = await placing.place(
            db, environment=environment, image=image, ahead=ahead, launch=launch, actor=SYSTEM
        )
    except QuotaExceeded as refused:
        await _still_waits(db, environment, Reason.QUOTA, str(refused))
        return
    if refusal is not None:
        await _still_waits(db, environment, refusal.reason, refusal.detail)


async def _still_waits(
    db: AsyncSession, environment: tables.Environment, reason: Reason, message: str
) -> None:
    if (environment.reason, environment.message) != (reason, message):
        await lifecycle.move(
            db,
            environment=environment,
            to=EnvironmentStatus.PENDING,
            reason=reason,
            message=message,
            actor=SYSTEM,
        )


async def fail_silent_starts(work: Work) -> None:
    """Fail starts that a host which speaks says nothing about; its agent is told to remove them."""
    row, event, host, held = tables.Environment, tables.Event, tables.Host, tables.Placement
    last_word = (
        select(func.max(event.at))
        .where(event.subject_type == "environment", event.subject_id == row.id)
        .scalar_subquery()
    )
    async with work.session() as db:
        silence = timedelta(seconds=await platform_settings.value(db, ENVIRONMENT_START_SILENCE_S))
        overdue = await db.execute(
            select(row.id, host.id)
            .join(held, (held.environment_id == row.id) & held.released_at.is_(None))
            .join(host, host.id == held.host_id)
            .where(
                row.status == "starting",
                host.connection == "online",
                held.placed_at < func.now() - silence,
                last_word < func.now() - silence,
            )
        )
        found = overdue.all()
    for environment_id, host_id in found:
        async with work.session() as db:
            environment = await queries.lock(db, environment_id=environment_id)
            if environment is None or environment.status != "starting":
                continue
            minutes = int(silence.total_seconds() // 60)
            await observe.fail(
                db,
                environment=environment,
                host_id=host_id,
                reason=Reason.START_TIMEOUT,
                message=f"Its host said nothing about this start for {minutes} minutes.",
                actor=SYSTEM,
            )


QUEUE = Loop(name="queue", every_s=lambda settings: settings.queue_tick_s, run=place_pending, wake="queue")
STARTS = Loop(name="silent-starts", every_s=30.0, run=fail_silent_starts)
