"""One rule over the readings of its signal: what begins, goes on and ends."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.alerts import AlertScope
from remotegpu_server.alerts import lifecycle
from remotegpu_server.alerts.convert import amount
from remotegpu_server.alerts.signals import SIGNALS, Reading, Signal
from remotegpu_server.db import tables
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import ALERT_FLAP_WINDOW_S, ALERT_HOLD_S

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}
LONGEST_HOLD_S = 3600.0
_row = tables.Alert


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a pass over one rule works with."""

    rule: tables.AlertRule
    signal: Signal
    now: datetime
    hold_s: float
    before: dict[str, int]
    """By object: flaps of the alert that was resolved a short while ago."""


async def judge(db: AsyncSession, *, rule_id: str, readings: Sequence[Reading]) -> None:
    """Lock the rule, so that no change of it comes between, and bring its alerts to what is true now."""
    rule = await db.scalar(
        select(tables.AlertRule)
        .where(tables.AlertRule.id == rule_id, tables.AlertRule.enabled)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if rule is None:
        return
    live = {alert.object_id: alert for alert in await live_of(db, rule_id=rule.id)}
    wanted = [one for one in readings if covers(rule.scope, one)]
    true = holds(rule, wanted)
    if rule.last_error is not None:
        rule.last_error = None
        await db.flush()
    if not live and not true:
        return
    now = await db.scalar(select(func.now()))
    assert now is not None
    this = _Pass(
        rule,
        SIGNALS[rule.signal],
        now,
        await platform_settings.value(db, ALERT_HOLD_S),
        await _resolved_just_now(db, rule_id=rule.id) if true else {},
    )
    for one in true:
        await _true(db, this, live.pop(one.object_id, None), one)
    known = {one.object_id: one for one in wanted}
    for object_id, alert in live.items():
        await _not_true(db, this, alert, known.get(object_id))


def holds(rule: tables.AlertRule, readings: Sequence[Reading]) -> list[Reading]:
    """Those that the rule is true of, wherever they are."""
    compare = OPERATORS[rule.operator]
    return [one for one in readings if one.value is not None and compare(one.value, rule.threshold)]


async def live_of(db: AsyncSession, *, rule_id: str) -> Sequence[tables.Alert]:
    """The alerts of a rule that are not over."""
    found = await db.scalars(
        select(_row)
        .where(_row.rule_id == rule_id, _row.status.in_(["pending", "firing"]))
        .execution_options(populate_existing=True)
    )
    return found.all()


def covers(scope: Mapping[str, Any], reading: Reading) -> bool:
    """Whether a rule is about this object."""
    wanted = AlertScope.model_validate(scope)
    if wanted.objects and not {reading.object_id, reading.name} & set(wanted.objects):
        return False
    return all(reading.host_labels.get(key) == value for key, value in wanted.host_labels.items())


async def _true(db: AsyncSession, this: _Pass, alert: tables.Alert | None, reading: Reading) -> None:
    rule, value = this.rule, reading.value
    assert value is not None
    since = this.now if alert is None else alert.since
    told = {"value": value, "object_name": reading.name, "message": _words(this, reading, since)}
    if alert is None:
        alert = await _begin(db, this, reading, **told)
    else:
        alert = await lifecycle.store(db, alert, true_at=this.now, **told)
    tells_user = this.signal.tells_user
    if alert.status == "pending":
        if (this.now - alert.since).total_seconds() >= rule.duration_s:
            await lifecycle.fire(db, alert, tells_user=tells_user)
    elif alert.told_at is None and not await lifecycle.silenced(db, alert):
        await lifecycle.tell(db, alert, tells_user=tells_user)


async def _begin(db: AsyncSession, this: _Pass, reading: Reading, **told: Any) -> tables.Alert:
    flaps = this.before.get(reading.object_id)
    made: tables.Alert | None = await db.scalar(
        insert(_row)
        .values(
            id=tables.new_id("alt"),
            rule_id=this.rule.id,
            rule_name=this.rule.name,
            severity=this.rule.severity,
            object_type=this.signal.object_type,
            object_id=reading.object_id,
            unit=this.signal.unit,
            user_id=reading.user_id,
            customer_id=reading.customer_id,
            workspace_id=reading.workspace_id,
            flaps=0 if flaps is None else flaps + 1,
            **told,
        )
        .returning(_row)
    )
    assert made is not None
    return made


async def _not_true(db: AsyncSession, this: _Pass, alert: tables.Alert, reading: Reading | None) -> None:
    if reading is not None and reading.value is None:
        return  # nobody knows
    if alert.status == "pending":
        await db.execute(delete(_row).where(_row.id == alert.id))
        return
    tells_user = this.signal.tells_user
    if reading is None:
        await lifecycle.resolve(db, alert, why="there is nothing to judge any more", tells_user=tells_user)
        return
    hold_s = min(this.hold_s * 2 ** min(alert.flaps, 20), max(LONGEST_HOLD_S, this.hold_s))
    if (this.now - alert.true_at).total_seconds() >= hold_s:
        assert reading.value is not None
        why = f"it is {amount(reading.value, this.signal.unit)} now"
        await lifecycle.resolve(db, alert, why=why, tells_user=tells_user)


async def _resolved_just_now(db: AsyncSession, *, rule_id: str) -> dict[str, int]:
    window = timedelta(seconds=await platform_settings.value(db, ALERT_FLAP_WINDOW_S))
    rows = await db.execute(
        select(_row.object_id, func.max(_row.flaps))
        .where(_row.rule_id == rule_id, _row.resolved_at > func.now() - window)
        .group_by(_row.object_id)
    )
    return {row[0]: row[1] for row in rows}


def _words(this: _Pass, reading: Reading, since: datetime) -> str:
    """Object, value, threshold, since when, and what to do."""
    rule, unit = this.rule, this.signal.unit
    assert reading.value is not None
    detail = f" ({reading.detail})" if reading.detail else ""
    return (
        f"{rule.name}: {this.signal.object_type} {reading.name}: {this.signal.name} is "
        f"{amount(reading.value, unit)}{detail}, {rule.operator} {amount(rule.threshold, unit)}, since "
        f"{since:%Y-%m-%d %H:%M:%S} UTC. {rule.advice or this.signal.advice}"
    )
