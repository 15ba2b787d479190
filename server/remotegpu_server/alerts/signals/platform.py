"""Signals of the server itself."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import LargeBinary as Bytes
from sqlalchemy import cast, func, literal, or_, select, text

from remotegpu_server.alerts.signals.reading import Reading, View, signal
from remotegpu_server.db import tables


@signal(
    name="login_failures",
    object_type="sign-in",
    unit="",
    maximum=1e6,
    description="Failed sign-ins of an account or from an address within the window that limits them.",
    advice="Somebody may be guessing: see the audit trail (`remotegpu audit list --outcome refused`).",
)
async def login_failures(view: View) -> list[Reading]:
    """The most first; names are known as hashes only, and shown where an account has the name."""
    failure, user = tables.LoginFailure, tables.User
    counted = (
        select(failure.subject, func.count().label("failures"))
        .where(failure.at > func.now() - timedelta(seconds=view.settings.login_window_s))
        .group_by(failure.subject)
        .order_by(func.count().desc(), failure.subject)
        .limit(200)
        .subquery()
    )
    digest = func.encode(func.sha256(cast(user.username, Bytes)), "hex")
    rows = await view.db.execute(
        select(counted.c.subject, counted.c.failures, user.username).outerjoin(
            user, literal("user:") + digest == counted.c.subject
        )
    )
    readings = []
    for subject, failures, username in rows:
        kind, _, rest = subject.partition(":")
        known = username or (rest if kind == "address" else f"no account ({rest[:8]})")
        readings.append(Reading(object_id=subject, name=f"{kind} {known}", value=float(failures)))
    return readings


@signal(
    name="database_connections_percent",
    object_type="database",
    unit="%",
    maximum=100,
    description="Connections of the database in use, of those that it allows.",
    advice="Lower REMOTEGPU_POOL_SIZE or raise max_connections.",
    every_s=60.0,
)
async def database_connections(view: View) -> list[Reading]:
    used, allowed = (
        await view.db.execute(
            text(
                "SELECT count(*), current_setting('max_connections')::int FROM pg_stat_activity"
                " WHERE backend_type = 'client backend'"
            )
        )
    ).one()
    value = 100.0 * used / allowed
    return [Reading(object_id="database", name="the database", value=value, detail=f"{used} of {allowed}")]


@signal(
    name="outbox_waiting_s",
    object_type="outbox",
    unit="s",
    maximum=7 * 86400,
    description="Age of the oldest thing that could not be delivered yet, by channel.",
    advice="Look at the mail server or the webhook's target; `outbox` holds the last error of each.",
    every_s=60.0,
)
async def outbox_waiting(view: View) -> list[Reading]:
    row, hook = tables.OutboxMessage, tables.Webhook
    age = func.extract("epoch", func.now() - func.min(row.created_at))
    tried = or_(row.webhook_id.is_(None), hook.enabled)  # nobody waits for one that its owner switched off
    waits_ = await view.db.execute(
        select(row.channel, age)
        .outerjoin(hook, hook.id == row.webhook_id)
        .where(row.delivered_at.is_(None), row.dead_at.is_(None), tried)
        .group_by(row.channel)
    )
    oldest = {channel: float(age_s) for channel, age_s in waits_}
    return [Reading(object_id=one, name=one, value=oldest.get(one, 0.0)) for one in ("mail", "webhook")]
