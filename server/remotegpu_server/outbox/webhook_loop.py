"""The pass that delivers webhooks, signed as Standard Webhooks say."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import httpx
import structlog
from sqlalchemy import Select, and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server import egress, observability
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.events import subscribers
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.notifications import service as notifications
from remotegpu_server.outbox import service
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import NOTIFICATION_GIVE_UP_S, WEBHOOK_ALLOWED_NETWORKS

_OF_ONE = 10
"""Deliveries of one webhook in a pass."""
_BATCH = 100
_LONGEST_S = 15.0
"""After so long a webhook begins no further delivery of a batch."""
_CLAIMS_S = 20.0
"""After so long a pass claims nothing more: its last batch ends well before the deadline of a pass, which
would cut off deliveries whose outcome is then unknown.
"""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 600.0
_log = structlog.get_logger(__name__)
_row, _hook = tables.OutboxMessage, tables.Webhook


@dataclass(frozen=True, slots=True)
class _Target:
    """A webhook as it was when the pass began; ``secret`` is None when it cannot be read any more."""

    id: str
    url: str
    secret: bytes | None


async def deliver(work: Work) -> None:
    """Each webhook by itself and all at once; one that hangs or fails pauses; a batch waits for it."""
    claims_until = time.monotonic() + _CLAIMS_S
    while True:
        async with work.session() as db:
            claimed = await service.claim(db, "webhook", limit=_BATCH, among=_row.id.in_(_next_of_each()))
            targets = await _targets(db, work, claimed)
            allowed = egress.parse_networks(await platform_settings.value(db, WEBHOOK_ALLOWED_NETWORKS))
        if not claimed:
            return
        groups: dict[str, list[tables.OutboxMessage]] = {}
        for message in claimed:
            groups.setdefault(message.webhook_id or "", []).append(message)
        ended = await asyncio.gather(
            *(_deliver_all(work, targets[hook], messages, allowed) for hook, messages in groups.items()),
            return_exceptions=True,
        )
        for error in ended:
            if error is not None:
                raise error
        if time.monotonic() >= claims_until:
            return


def _next_of_each() -> Select[tuple[str]]:
    """The oldest few of every webhook that is not paused."""
    numbered = (
        select(
            _row.id,
            func.row_number().over(partition_by=_row.webhook_id, order_by=(_row.due_at, _row.id)).label("n"),
        )
        .join(_hook, _hook.id == _row.webhook_id)
        .where(
            service.waiting("webhook"),
            and_(_hook.enabled, or_(_hook.paused_until.is_(None), _hook.paused_until <= func.now())),
        )
        .subquery()
    )
    return select(numbered.c.id).where(numbered.c.n <= _OF_ONE)


async def _targets(
    db: AsyncSession, work: Work, messages: Sequence[tables.OutboxMessage]
) -> dict[str, _Target]:
    rows = await db.scalars(select(_hook).where(_hook.id.in_({one.webhook_id for one in messages})))
    return {row.id: _Target(row.id, row.url, work.vault.open(row.secret)) for row in rows}


async def _deliver_all(
    work: Work,
    target: _Target,
    messages: Sequence[tables.OutboxMessage],
    allowed: Sequence[egress.Network],
) -> None:
    """Each is settled as it ends. Raises only what is about all webhooks (:func:`by_itself`)."""
    with by_itself("outbox-webhooks", target.id):
        await _deliver_in_turn(work, target, messages, allowed)


async def _deliver_in_turn(
    work: Work,
    target: _Target,
    messages: Sequence[tables.OutboxMessage],
    allowed: Sequence[egress.Network],
) -> None:
    ends = time.monotonic() + _LONGEST_S
    for number, message in enumerate(messages):
        error = await _attempt(target, message, allowed)
        async with work.session() as db:
            if error is None:
                await service.delivered(db, message)
                await _works(db, target)
                observability.OUTBOX.labels("webhook", "delivered").inc()
            else:
                dead = await service.failed(db, message, error=error)
                await _fails(db, target, error)
                observability.OUTBOX.labels("webhook", "dead" if dead else "failed").inc()
        if error is not None or time.monotonic() > ends:
            async with work.session() as db:
                for rest in messages[number + 1 :]:
                    await service.put_back(db, rest)
            return


async def _attempt(
    target: _Target, message: tables.OutboxMessage, allowed: Sequence[egress.Network]
) -> str | None:
    """What went wrong; None: taken."""
    if target.secret is None:
        return "its secret cannot be read any more, because the server's key was replaced; rotate it"
    body = json.dumps(message.payload, separators=(",", ":")).encode()
    moment = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "RemoteGPU-Webhooks",
        "webhook-id": message.id,
        "webhook-timestamp": moment,
        "webhook-signature": sign(target.secret, message.id, moment, body),
    }
    try:
        status = await egress.post(target.url, body=body, headers=headers, allowed=allowed)
    except egress.EgressRefused as error:
        return f"the target was refused: {error}"
    except TimeoutError:
        return f"no answer within {egress.TIMEOUT_S:g} seconds"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # ValueError: an odd host
        return f"{type(error).__name__}: {error}"[:500]
    if 200 <= status < 300:
        return None
    return f"it answered {status}" + ("; redirects are not followed" if 300 <= status < 400 else "")


def sign(secret: bytes, message_id: str, moment: str, body: bytes) -> str:
    """``v1,<base64 of HMAC-SHA256>`` over id, time and body."""
    signed = hmac.new(secret, f"{message_id}.{moment}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(signed.digest()).decode()}"


async def _works(db: AsyncSession, target: _Target) -> None:
    await db.execute(
        update(_hook)
        .where(_hook.id == target.id, _hook.failing_since.is_not(None))
        .values(failures=0, failing_since=None, paused_until=None)
    )


async def _fails(db: AsyncSession, target: _Target, error: str) -> None:
    """It pauses, longer each time; one that has failed for as long as anything is tried is switched off."""
    pause_s = func.least(_FIRST_PAUSE_S * func.power(2, func.least(_hook.failures, 10)), _LONGEST_PAUSE_S)
    hook = await db.scalar(
        update(_hook)
        .where(_hook.id == target.id, _hook.enabled)
        .values(
            failures=_hook.failures + 1,
            failing_since=func.coalesce(_hook.failing_since, func.now()),
            paused_until=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause_s),
        )
        .returning(_hook)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    if hook is None:
        return
    _log.warning("webhook_failed", webhook_id=hook.id, error=error, failures=hook.failures)
    give_up = timedelta(seconds=await platform_settings.value(db, NOTIFICATION_GIVE_UP_S))
    given_up = await db.scalar(
        update(_hook)
        .where(_hook.id == hook.id, _hook.failing_since < func.now() - give_up)
        .values(enabled=False)
        .returning(_hook.owner_id)
    )
    if given_up is None:
        return
    await db.execute(
        update(_row)
        .where(_row.webhook_id == hook.id, _row.delivered_at.is_(None), _row.dead_at.is_(None))
        .values(dead_at=func.now(), leased_until=None, error="its webhook was switched off")
    )
    message = f"The webhook to {hook.url} has taken nothing for {give_up} and was switched off: {error}"
    await events.record(
        db,
        kind="webhook.given_up",
        subject_type="webhook",
        subject_id=hook.id,
        actor=SYSTEM,
        message=message,
        user_id=given_up,
    )
    await notifications.tell(
        db,
        user_ids=[given_up],
        kind="webhook.given_up",
        level="error",
        message=message,
        subject_type="webhook",
        subject_id=hook.id,
    )


LOOP = Loop(name="outbox-webhooks", every_s=10.0, run=deliver, wake=subscribers.HINT)
