"""Alerts as people see them, rules as admins write them, and silences."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NameTaken, NotFound, StateConflict
from remotegpu.types.alerts import (
    Alert,
    AlertRule,
    AlertRuleCreate,
    AlertRuleUpdate,
    AlertSeverity,
    AlertSignals,
    AlertSilence,
    AlertSilenceCreate,
    AlertStatus,
)
from remotegpu.types.wire import Page
from remotegpu_server import pagination
from remotegpu_server.alerts import judging, lifecycle
from remotegpu_server.alerts.convert import rule_to_wire, signal_to_wire, silence_to_wire, to_wire
from remotegpu_server.alerts.signals import SIGNALS
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor, require, visibility
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events

_alert, _rule, _silence = tables.Alert, tables.AlertRule, tables.AlertSilence


# Alerts


async def list_alerts(
    db: AsyncSession,
    *,
    actor: Actor,
    status: AlertStatus | None,
    severity: AlertSeverity | None,
    rule: str | None,
    object_type: str | None,
    object_id: str | None,
    limit: int,
    cursor: str | None,
) -> Page[Alert]:
    """Newest first; of people who are no admins those about what is theirs."""
    query = _seen(actor)
    if status is not None:
        query = query.where(_alert.status == str(status))
    if severity is not None:
        query = query.where(_alert.severity == str(severity))
    if rule is not None:
        query = query.where(or_(_alert.rule_id == rule, _alert.rule_name == rule))
    if object_type is not None:
        query = query.where(_alert.object_type == object_type)
    if object_id is not None:
        query = query.where(or_(_alert.object_id == object_id, _alert.object_name == object_id))
    if cursor is not None:
        query = query.where(pagination.before((_alert.created_at, _alert.id), cursor))
    query = query.order_by(_alert.created_at.desc(), _alert.id.desc())
    rows = list(await db.scalars(query.limit(limit + 1)))
    last = rows[limit - 1] if len(rows) > limit else None
    return Page[Alert](
        items=[to_wire(row) for row in rows[:limit]],
        next_cursor=pagination.encode([last.created_at, last.id]) if last else None,
    )


async def get_alert(db: AsyncSession, *, actor: Actor, alert_id: str) -> Alert:
    """One alert; 404 when it is about something that the caller does not see."""
    row = await db.scalar(_seen(actor).where(_alert.id == alert_id))
    if row is None:
        raise NotFound("There is no such alert.")
    return to_wire(row)


async def acknowledge(db: AsyncSession, *, actor: Actor, alert_id: str) -> Alert:
    """Say that somebody looks after it; the first one who says so stays."""
    require(actor, Action.ALERT_WRITE)
    row = await db.scalar(
        select(_alert)
        .where(_alert.id == alert_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if row is None:
        raise NotFound("There is no such alert.")
    if row.status != "firing":
        raise StateConflict(f"This alert is {row.status}; only one that fires is acknowledged.")
    if row.acknowledged_at is None:
        row = await lifecycle.store(db, row, acknowledged_at=func.now(), acknowledged_by=actor.name)
        message = f"{actor.name} looks after {row.rule_name} of {row.object_name}."
        await _record(db, actor, "alert.acknowledged", row.id, message)
    return to_wire(row)


def _seen(actor: Actor) -> Any:
    require(actor, Action.ALERT_READ)
    sees, query = visibility(actor), select(_alert)
    if sees.everything:
        return query
    own = (
        (_alert.user_id == sees.user_id) & _alert.workspace_id.is_(None)
        if sees.customer_id is None
        else _alert.customer_id == sees.customer_id
    )
    return query.where(own | _alert.workspace_id.in_(sees.workspace_ids))


# Rules


def list_signals(*, actor: Actor) -> AlertSignals:
    """What rules can be about."""
    require(actor, Action.ALERT_RULE_READ)
    return AlertSignals(signals=[signal_to_wire(one) for _, one in sorted(SIGNALS.items())])


async def list_rules(db: AsyncSession, *, actor: Actor, limit: int, cursor: str | None) -> Page[AlertRule]:
    """By name."""
    require(actor, Action.ALERT_RULE_READ)
    rows, following = await pagination.page(db, select(_rule), key=(_rule.name,), limit=limit, cursor=cursor)
    firing = await _firing(db, [row.id for row in rows])
    return Page[AlertRule](
        items=[rule_to_wire(row, firing=firing.get(row.id, 0)) for row in rows], next_cursor=following
    )


async def get_rule(db: AsyncSession, *, actor: Actor, rule: str) -> AlertRule:
    """By name or id."""
    require(actor, Action.ALERT_RULE_READ)
    return await _answer(db, await _found(db, rule))


async def create_rule(db: AsyncSession, *, actor: Actor, body: AlertRuleCreate) -> AlertRule:
    """It is judged from the next pass on."""
    require(actor, Action.ALERT_RULE_WRITE)
    values = {
        "signal": body.signal,
        "operator": str(body.operator),
        "threshold": body.threshold,
        "duration_s": body.duration_s,
        "severity": str(body.severity),
        "scope": body.scope.model_dump(mode="json"),
        "advice": body.advice,
        "enabled": body.enabled,
    }
    _require_judgeable(values)
    rule_id = tables.new_id("rul")
    try:
        async with db.begin_nested():
            await db.execute(
                insert(_rule).values(id=rule_id, name=body.name, created_by=actor.name, **values)
            )
    except IntegrityError as error:
        raise NameTaken(f"There is a rule {body.name!r} already.", data={"name": body.name}) from error
    message = f"{actor.name} made the alert rule {body.name}."
    await _record(db, actor, "alert_rule.created", rule_id, message)
    notify(db, "alerts")
    return await _answer(db, await _found(db, rule_id))


async def update_rule(db: AsyncSession, *, actor: Actor, rule: str, body: AlertRuleUpdate) -> AlertRule:
    """What it had fired is resolved and judged anew by what it says now."""
    require(actor, Action.ALERT_RULE_WRITE)
    row = await _found(db, rule, lock=True)
    given = body.model_dump(mode="json", exclude_none=True)
    values = {key: value for key, value in given.items() if value != getattr(row, key)}
    if not values:
        return await _answer(db, row)
    now = {"signal": row.signal, "operator": row.operator, "threshold": row.threshold}
    _require_judgeable(now | values)
    audit.note(db, old={key: getattr(row, key) for key in values}, new=values)
    await _end_alerts(db, row, why="its rule was changed")
    await db.execute(
        update(_rule).where(_rule.id == row.id).values(**values, last_error=None, changed_at=func.now())
    )
    message = f"{actor.name} changed the alert rule {row.name}: {', '.join(sorted(values))}."
    await _record(db, actor, "alert_rule.changed", row.id, message)
    notify(db, "alerts")
    return await _answer(db, await _found(db, row.id))


async def delete_rule(db: AsyncSession, *, actor: Actor, rule: str) -> None:
    """Its alerts stay as history, resolved. Seeded rules are switched off instead."""
    require(actor, Action.ALERT_RULE_WRITE)
    row = await _found(db, rule, lock=True)
    if row.built_in:
        raise StateConflict(
            f"{row.name} was seeded and would come back with an upgrade.",
            hint=f"Switch it off: `remotegpu alert-rule disable {row.name}`.",
        )
    await _end_alerts(db, row, why="its rule was deleted")
    await _record(db, actor, "alert_rule.deleted", row.id, f"{actor.name} deleted the alert rule {row.name}.")
    await db.execute(delete(_rule).where(_rule.id == row.id))


def _require_judgeable(values: Mapping[str, Any]) -> None:
    signal = SIGNALS.get(values["signal"])
    if signal is None:
        raise _invalid(
            "signal", f"there is no signal {values['signal']!r}", "`GET /v1/alert-signals` lists them."
        )
    if not signal.minimum <= values["threshold"] <= signal.maximum:
        bounds = f"must be {signal.minimum:g} to {signal.maximum:g}"
        raise _invalid("threshold", bounds, f"{signal.description} In {signal.unit or 'plain numbers'}.")


def _invalid(field: str, message: str, hint: str) -> Invalid:
    errors = [{"field": f"body.{field}", "message": message}]
    return Invalid(f"{field}: {message}.", hint=hint, data={"errors": errors})


async def _end_alerts(db: AsyncSession, rule: tables.AlertRule, *, why: str) -> None:
    """Of a locked rule."""
    await db.execute(delete(_alert).where(_alert.rule_id == rule.id, _alert.status == "pending"))
    tells_user = rule.signal in SIGNALS and SIGNALS[rule.signal].tells_user
    for alert in await judging.live_of(db, rule_id=rule.id):
        await lifecycle.resolve(db, alert, why=why, tells_user=tells_user)


async def _found(db: AsyncSession, rule: str, *, lock: bool = False) -> tables.AlertRule:
    query = select(_rule).where(or_(_rule.id == rule, _rule.name == rule))
    if lock:
        query = query.with_for_update()
    row: tables.AlertRule | None = await db.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise NotFound("There is no such alert rule.")
    return row


async def _answer(db: AsyncSession, row: tables.AlertRule) -> AlertRule:
    return rule_to_wire(row, firing=(await _firing(db, [row.id])).get(row.id, 0))


async def _firing(db: AsyncSession, rule_ids: list[str]) -> dict[str, int]:
    rows = await db.execute(
        select(_alert.rule_id, func.count())
        .where(_alert.rule_id.in_(rule_ids), _alert.status == "firing")
        .group_by(_alert.rule_id)
    )
    return {str(rule_id): count for rule_id, count in rows}


# Silences


async def list_silences(
    db: AsyncSession, *, actor: Actor, limit: int, cursor: str | None
) -> Page[AlertSilence]:
    """Those that hold, the first to end first."""
    require(actor, Action.ALERT_RULE_READ)
    rows, following = await pagination.page(
        db,
        select(_silence).where(_silence.until > func.now()),
        key=(_silence.until, _silence.id),
        limit=limit,
        cursor=cursor,
    )
    names = await db.execute(select(_rule.id, _rule.name).where(_rule.id.in_([row.rule_id for row in rows])))
    by_id = {row[0]: row[1] for row in names}
    return Page[AlertSilence](
        items=[silence_to_wire(row, by_id.get(row.rule_id or "")) for row in rows], next_cursor=following
    )


async def create_silence(db: AsyncSession, *, actor: Actor, body: AlertSilenceCreate) -> AlertSilence:
    """What it covers still fires and is seen; nobody is told of it before its end."""
    require(actor, Action.ALERT_RULE_WRITE)
    rule = None if body.rule is None else await _found(db, body.rule)
    now = await db.scalar(select(func.now()))
    assert now is not None
    if not now < body.until <= now + timedelta(days=366):
        raise _invalid("until", "must be in the future, at most a year from now", "Such as tomorrow.")
    row = await db.scalar(
        insert(_silence)
        .values(
            id=tables.new_id("sil"),
            rule_id=rule.id if rule else None,
            object=body.object,
            until=body.until,
            reason=body.reason,
            created_by=actor.name,
        )
        .returning(_silence)
    )
    assert row is not None
    what = f"{rule.name if rule else 'every rule'} of {body.object or 'everything'}"
    message = f"{actor.name} silenced {what} until {body.until:%Y-%m-%d %H:%M} UTC."
    await _record(db, actor, "alert_silence.created", row.id, message)
    return silence_to_wire(row, rule.name if rule else None)


async def delete_silence(db: AsyncSession, *, actor: Actor, silence_id: str) -> None:
    """End it now: what fires and was kept quiet is told at the next pass."""
    require(actor, Action.ALERT_RULE_WRITE)
    removed = await db.scalar(delete(_silence).where(_silence.id == silence_id).returning(_silence.id))
    if removed is None:
        raise NotFound("There is no such silence.")
    await _record(db, actor, "alert_silence.ended", silence_id, f"{actor.name} ended a silence.")
    notify(db, "alerts")


async def _record(db: AsyncSession, actor: Actor, kind: str, subject_id: str, message: str) -> None:
    await events.record(
        db,
        kind=kind,
        subject_type=kind.partition(".")[0],
        subject_id=subject_id,
        actor=actor,
        message=message,
    )
