"""Sweeping what is too old, in small batches, so that no table grows for ever."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, select, text, tuple_
from sqlalchemy import inspect as sa_inspect

from remotegpu_server import idempotency
from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work
from remotegpu_server.settings import Settings

LOG_REQUESTS_S = 60
CAPACITY_CHANGES_S = 1800
"""Longer than any process keeps a fleet without loading it anew."""
SILENCES_S = 7 * 86400
"""Ended ones."""
OUTBOX_S = 8 * 86400
"""Longer than any of them may wait (``notifications.give_up_s``)."""
EXPIRED_TOKENS_S = 7 * 86400
"""Kept for a week after their end, so that "expired" and "revoked" can be told apart from "unknown"."""
_BATCH = 5000
_BATCHES_PER_PASS = 20


def _rules(settings: Settings) -> list[tuple[type[tables.Base], ColumnElement[bool]]]:
    def older(column: object, seconds: float) -> ColumnElement[bool]:
        found: ColumnElement[bool] = column < func.now() - timedelta(seconds=seconds)
        return found

    token = tables.Token
    return [
        (tables.LoginFailure, older(tables.LoginFailure.at, settings.login_window_s)),
        (tables.PasswordReset, older(tables.PasswordReset.expires_at, 86400)),
        (tables.OidcLogin, older(tables.OidcLogin.created_at, 3600)),
        (tables.IdempotencyKey, older(tables.IdempotencyKey.created_at, idempotency.RETENTION_S)),
        (tables.LogRequest, older(tables.LogRequest.created_at, LOG_REQUESTS_S)),
        (tables.CapacityChange, older(tables.CapacityChange.at, CAPACITY_CHANGES_S)),
        (token, older(func.least(token.expires_at, token.revoked_at), EXPIRED_TOKENS_S)),
        (tables.OutboxMessage, older(tables.OutboxMessage.created_at, OUTBOX_S)),
        (tables.Alert, older(tables.Alert.resolved_at, settings.event_retention_s)),
        (tables.AlertSilence, older(tables.AlertSilence.until, SILENCES_S)),
        (tables.Event, older(tables.Event.at, settings.event_retention_s)),
    ]


async def sweep(work: Work) -> None:
    """Delete old rows of every table that has an age limit."""
    for table, too_old in _rules(work.settings):
        key = list(sa_inspect(table).primary_key)
        oldest = select(*key).where(too_old).limit(_BATCH)
        for _ in range(_BATCHES_PER_PASS):
            async with work.session() as db:
                # Events are append-only for everybody else; a trigger asks for this.
                await db.execute(text("SET LOCAL remotegpu.retention = 'on'"))
                removed = await db.execute(
                    delete(table.__table__)  # type: ignore[arg-type]
                    .where(tuple_(*key).in_(oldest))
                    .returning(key[0])
                )
                if len(removed.all()) < _BATCH:
                    break


LOOP = Loop(name="retention", every_s=60.0, run=sweep)
