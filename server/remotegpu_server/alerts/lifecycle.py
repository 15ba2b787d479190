"""The one place that moves an alert, with its event and what people are told."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.hosts import queries as hosts
from remotegpu_server.notifications import service as notifications

_LEVELS: dict[str, notifications.Level] = {"info": "info", "warning": "warning", "critical": "error"}
_row = tables.Alert


async def store(db: AsyncSession, alert: tables.Alert, **values: Any) -> tables.Alert:
    """Write columns of an alert whose rule is locked."""
    changed = await db.scalar(
        update(_row)
        .where(_row.id == alert.id)
        .values(**values)
        .returning(_row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert changed is not None, "its rule is locked"
    return changed


async def fire(db: AsyncSession, alert: tables.Alert, *, tells_user: bool) -> None:
    """It has been true for long enough."""
    fired = await store(db, alert, status="firing", fired_at=func.now())
    if await silenced(db, fired):
        await _record(db, fired, "silenced", fired.message)
    else:
        await tell(db, fired, tells_user=tells_user)


async def tell(db: AsyncSession, alert: tables.Alert, *, tells_user: bool) -> None:
    """Tell people of one that fires: once."""
    told = await store(db, alert, told_at=func.now())
    await _record(db, told, "triggered", told.message)
    await _notify(db, told, "triggered", _LEVELS[told.severity], told.message, tells_user=tells_user)


async def resolve(db: AsyncSession, alert: tables.Alert, *, why: str, tells_user: bool) -> None:
    """It is over; whoever was told that it fires is told that, too."""
    done = await store(db, alert, status="resolved", resolved_at=func.now(), resolution=why)
    message = f"Resolved: {done.rule_name} of {done.object_name}: {why}."
    await _record(db, done, "resolved", message)
    if done.told_at is not None:
        await _notify(db, done, "resolved", "info", message, tells_user=tells_user)


async def silenced(db: AsyncSession, alert: tables.Alert) -> bool:
    """Whether a silence covers it now."""
    row = tables.AlertSilence
    found = await db.scalar(
        select(row.id)
        .where(
            row.until > func.now(),
            or_(row.rule_id.is_(None), row.rule_id == alert.rule_id),
            or_(row.object.is_(None), row.object.in_([alert.object_id, alert.object_name])),
        )
        .limit(1)
    )
    return found is not None


async def _record(db: AsyncSession, alert: tables.Alert, what: str, message: str) -> None:
    await events.record(
        db,
        kind=f"alert.{what}",
        subject_type="alert",
        subject_id=alert.id,
        actor=SYSTEM,
        message=message,
        data=_facts(alert),
        customer_id=alert.customer_id,
        user_id=alert.user_id,
        workspace_id=alert.workspace_id,
    )


async def _notify(
    db: AsyncSession,
    alert: tables.Alert,
    what: str,
    level: notifications.Level,
    message: str,
    *,
    tells_user: bool,
) -> None:
    people = set(await hosts.admins(db))
    if tells_user and alert.user_id is not None:
        people.add(alert.user_id)
    await notifications.tell(
        db,
        user_ids=people,
        kind=f"alert.{what}",
        level=level,
        message=message,
        subject_type="alert",
        subject_id=alert.id,
        data=_facts(alert),
    )


def _facts(alert: tables.Alert) -> dict[str, Any]:
    return {
        "rule": alert.rule_name,
        "severity": alert.severity,
        "object_type": alert.object_type,
        "object_id": alert.object_id,
        "object_name": alert.object_name,
        "value": alert.value,
        "unit": alert.unit,
        "since": alert.since.isoformat(),
    }
