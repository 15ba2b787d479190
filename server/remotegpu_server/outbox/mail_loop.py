"""The pass that delivers mail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server import observability
from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work
from remotegpu_server.outbox import service, smtp

_BATCH = 20
_CLAIMS_S = 20.0
"""After so long a pass claims nothing more: a batch ends within ``smtp.CUT_S``, so that the deadline of a
pass never cuts one off whose outcomes would be lost.
"""
_log = structlog.get_logger(__name__)


async def send_mail(work: Work) -> None:
    """Send what is due, a batch a connection. A mail server that is away ends the pass."""
    if work.settings.smtp_url is None:
        async with work.session() as db:
            await service.drop(db, "mail")
        return
    claims_until = time.monotonic() + _CLAIMS_S
    while True:
        async with work.session() as db:
            claimed = await service.claim(db, "mail", limit=_BATCH)
            addresses = await _addresses(db, claimed)
        if not claimed:
            return
        sendable = [one for one in claimed if one.user_id in addresses]
        outcomes = (
            await asyncio.to_thread(
                smtp.send,
                work.settings.smtp_url,
                sender=work.settings.mail_from,
                mails=[_mail(one, addresses[one.user_id]) for one in sendable],
            )
            if sendable
            else []
        )
        async with work.session() as db:
            for one in claimed:
                if one.user_id not in addresses:
                    await service.failed(db, one, error="the account has no address any more", final=True)
            for one, outcome in zip(sendable, outcomes, strict=True):
                await _settle(db, one, outcome)
        if any(one is None or (one.error and not one.final) for one in outcomes):
            return
        if time.monotonic() >= claims_until:
            return


def _mail(message: tables.OutboxMessage, address: str) -> smtp.Mail:
    return smtp.Mail(
        message_id=message.id,
        to=address,
        subject=message.payload["subject"],
        text=message.payload["text"],
    )


async def _addresses(db: AsyncSession, messages: Sequence[tables.OutboxMessage]) -> dict[str, str]:
    """As they are now, of accounts that may be told."""
    user = tables.User
    rows = await db.execute(
        select(user.id, user.email).where(
            user.id.in_([one.user_id for one in messages]),
            user.status == "active",
            user.email.is_not(None),
        )
    )
    return {user_id: address for user_id, address in rows if address is not None}


async def _settle(db: AsyncSession, message: tables.OutboxMessage, outcome: smtp.Outcome | None) -> None:
    if outcome is None:
        await service.put_back(db, message)
        return
    if outcome.error is None:
        await service.delivered(db, message)
        observability.OUTBOX.labels("mail", "delivered").inc()
        return
    dead = await service.failed(db, message, error=outcome.error, final=outcome.final)
    observability.OUTBOX.labels("mail", "dead" if dead else "failed").inc()
    _log.warning("mail_not_sent", message_id=message.id, error=outcome.error, given_up=dead)


LOOP = Loop(name="outbox-mail", every_s=10.0, run=send_mail, wake=service.hint("mail"))
