"""Mail with links to a new password. A row holds its secret, encrypted, only until it is sent."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy import func, select, update

from remotegpu_server.auth import resets
from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.outbox import smtp

_BATCH = 20
_log = structlog.get_logger(__name__)


async def send_mail(work: Work) -> None:
    """Send what waits. A server that refuses is asked again at the next pass, until the link is too old."""
    if work.settings.smtp_url is None:
        return
    reset, user = tables.PasswordReset, tables.User
    async with work.session() as db:
        waiting = (
            await db.execute(
                select(reset.id, reset.mail, user.email)
                .join(user, user.id == reset.user_id)
                .where(reset.mail.is_not(None), reset.expires_at > func.now(), user.email.is_not(None))
                .limit(_BATCH)
            )
        ).all()
    for reset_id, sealed, address in waiting:
        assert sealed is not None
        assert address is not None
        with by_itself("password-mail", reset_id):
            secret = work.vault.open(sealed)
            if secret is not None and not await _send(
                work, reset_id=reset_id, to=address, secret=secret.decode()
            ):
                continue
            async with work.session() as db:
                await db.execute(update(reset).where(reset.id == reset_id).values(mail=None))


async def _send(work: Work, *, reset_id: str, to: str, secret: str) -> bool:
    settings = work.settings
    where = resets.link(settings, secret) or f"remotegpu reset-password, with this secret: {secret}"
    text = (
        "Somebody, probably you, asked for a new password of your RemoteGPU account.\n\n"
        f"Set it here within {resets.LIFETIME_S // 60} minutes; it works once:\n\n  {where}\n\n"
        "If it was not you, do nothing: your password stays as it is.\n"
    )
    assert settings.smtp_url is not None
    mail = smtp.Mail(message_id=reset_id, to=to, subject="New password", text=text)
    (outcome,) = await asyncio.to_thread(
        smtp.send, settings.smtp_url, sender=settings.mail_from, mails=[mail]
    )
    if outcome is None or outcome.error is not None:
        _log.warning("mail_not_sent", error=outcome.error if outcome else "not tried")
        return False
    return True


LOOP = Loop(name="password-mail", every_s=15.0, run=send_mail, wake=resets.MAIL)
