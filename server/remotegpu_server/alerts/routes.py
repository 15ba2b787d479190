"""Endpoints of alerts, their rules, signals and silences."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

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
from remotegpu_server.alerts import service
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router

router = api_router("alerts")


@router.get("/v1/alerts", summary="List alerts")
async def list_alerts(
    db: Db,
    caller: Caller,
    status: AlertStatus | None = None,
    severity: AlertSeverity | None = None,
    rule: Annotated[str | None, Query(max_length=64, description="Name or id.")] = None,
    object_type: Annotated[str | None, Query(max_length=32)] = None,
    object_id: Annotated[str | None, Query(max_length=128, description="Id or name.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Alert]:
    """Newest first. Admins see all, others those about what is theirs."""
    return await service.list_alerts(
        db,
        actor=caller,
        status=status,
        severity=severity,
        rule=rule,
        object_type=object_type,
        object_id=object_id,
        limit=limit,
        cursor=cursor,
    )


@router.get("/v1/alerts/{alert_id}", summary="One alert")
async def get_alert(alert_id: str, db: Db, caller: Caller) -> Alert:
    """Object, value, since when, and what to do."""
    return await service.get_alert(db, actor=caller, alert_id=alert_id)


@router.post("/v1/alerts/{alert_id}:acknowledge", summary="Say that somebody looks after an alert")
async def acknowledge_alert(alert_id: str, db: Db, caller: Caller) -> Alert:
    """The first one who says so stays; 409 when it does not fire."""
    return await service.acknowledge(db, actor=caller, alert_id=alert_id)


@router.get("/v1/alert-signals", summary="What rules can be about")
async def list_alert_signals(caller: Caller) -> AlertSignals:
    """By name, with units and bounds."""
    return service.list_signals(actor=caller)


@router.get("/v1/alert-rules", summary="List alert rules")
async def list_alert_rules(
    db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None
) -> Page[AlertRule]:
    """By name."""
    return await service.list_rules(db, actor=caller, limit=limit, cursor=cursor)


@router.post("/v1/alert-rules", status_code=201, summary="Make an alert rule", dependencies=[IDEMPOTENT])
async def create_alert_rule(body: AlertRuleCreate, db: Db, caller: Caller) -> AlertRule:
    """Judged from the next pass on. 422 for a signal that there is not, or a threshold out of its bounds."""
    return await service.create_rule(db, actor=caller, body=body)


@router.get("/v1/alert-rules/{rule}", summary="One alert rule")
async def get_alert_rule(rule: str, db: Db, caller: Caller) -> AlertRule:
    """By name or id."""
    return await service.get_rule(db, actor=caller, rule=rule)


@router.patch("/v1/alert-rules/{rule}", summary="Change an alert rule")
async def update_alert_rule(rule: str, body: AlertRuleUpdate, db: Db, caller: Caller) -> AlertRule:
    """What it had fired is resolved, and judged anew."""
    return await service.update_rule(db, actor=caller, rule=rule, body=body)


@router.delete("/v1/alert-rules/{rule}", status_code=204, summary="Delete an alert rule")
async def delete_alert_rule(rule: str, db: Db, caller: Caller) -> None:
    """Its alerts stay, resolved. A seeded one is switched off instead: 409."""
    await service.delete_rule(db, actor=caller, rule=rule)


@router.get("/v1/alert-silences", summary="List silences")
async def list_alert_silences(
    db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None
) -> Page[AlertSilence]:
    """Those that hold, the first to end first."""
    return await service.list_silences(db, actor=caller, limit=limit, cursor=cursor)


@router.post("/v1/alert-silences", status_code=201, summary="Silence alerts", dependencies=[IDEMPOTENT])
async def create_alert_silence(body: AlertSilenceCreate, db: Db, caller: Caller) -> AlertSilence:
    """What it covers still fires and is seen; people are told at its end of what still fires then."""
    return await service.create_silence(db, actor=caller, body=body)


@router.delete("/v1/alert-silences/{silence_id}", status_code=204, summary="End a silence")
async def delete_alert_silence(silence_id: str, db: Db, caller: Caller) -> None:
    """At once."""
    await service.delete_silence(db, actor=caller, silence_id=silence_id)
