"""Rows to wire types, and alerts in words."""

from __future__ import annotations

from remotegpu.types.alerts import (
    Alert,
    AlertOperator,
    AlertRule,
    AlertScope,
    AlertSeverity,
    AlertSignal,
    AlertSilence,
    AlertStatus,
)
from remotegpu_server.alerts.signals import Signal
from remotegpu_server.db import tables


def rule_to_wire(row: tables.AlertRule, *, firing: int) -> AlertRule:
    """What admins see of a rule."""
    return AlertRule(
        id=row.id,
        name=row.name,
        signal=row.signal,
        operator=AlertOperator(row.operator),
        threshold=row.threshold,
        duration_s=row.duration_s,
        severity=AlertSeverity(row.severity),
        scope=AlertScope.model_validate(row.scope),
        advice=row.advice,
        enabled=row.enabled,
        built_in=row.built_in,
        firing=firing,
        last_error=row.last_error,
        created_by=row.created_by,
        created_at=row.created_at,
        changed_at=row.changed_at,
    )


def to_wire(row: tables.Alert) -> Alert:
    """What its readers see of an alert."""
    return Alert(
        id=row.id,
        rule_id=row.rule_id,
        rule=row.rule_name,
        severity=AlertSeverity(row.severity),
        status=AlertStatus(row.status),
        object_type=row.object_type,
        object_id=row.object_id,
        object_name=row.object_name,
        value=row.value,
        unit=row.unit,
        message=row.message,
        since=row.since,
        fired_at=row.fired_at,
        resolved_at=row.resolved_at,
        resolution=row.resolution,
        flaps=row.flaps,
        silenced=row.fired_at is not None and row.told_at is None,
        acknowledged_by=row.acknowledged_by,
        acknowledged_at=row.acknowledged_at,
    )


def silence_to_wire(row: tables.AlertSilence, rule: str | None) -> AlertSilence:
    """A silence, with the name of its rule."""
    return AlertSilence(
        id=row.id,
        rule_id=row.rule_id,
        rule=rule,
        object=row.object,
        until=row.until,
        reason=row.reason,
        created_by=row.created_by,
        created_at=row.created_at,
    )


def signal_to_wire(signal: Signal) -> AlertSignal:
    """What a rule can be about."""
    return AlertSignal(
        name=signal.name,
        unit=signal.unit,
        object_type=signal.object_type,
        description=signal.description,
        advice=signal.advice,
        minimum=signal.minimum,
        maximum=signal.maximum,
        every_s=signal.every_s,
    )


def amount(value: float, unit: str) -> str:
    """A value with its unit: ``96.5 °C``, ``93 %``, ``7``."""
    rounded = f"{value:.1f}".rstrip("0").rstrip(".")
    return f"{rounded} {unit}" if unit else rounded
