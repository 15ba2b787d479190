"""Alerts: what a rule says of one object, and the rules."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from remotegpu.types.wire import Labels, Name, Text, UtcTime, Wire, WireEnum

SignalName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
DurationS = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Threshold = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]


class AlertSeverity(WireEnum):
    """How much it matters; people are told of it as info, warning, error."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


class AlertOperator(WireEnum):
    """How the value is compared with the threshold."""

    ABOVE = ">"
    AT_LEAST = ">="
    BELOW = "<"
    AT_MOST = "<="
    EQUAL = "=="
    UNKNOWN = "unknown"


class AlertStatus(WireEnum):
    """Where an alert stands."""

    PENDING = "pending"
    """True, but not for the rule's duration yet."""
    FIRING = "firing"
    RESOLVED = "resolved"
    UNKNOWN = "unknown"


class AlertScope(Wire):
    """Which objects a rule is about; left empty: all that its signal measures."""

    objects: list[ObjectName] = Field(default_factory=list, max_length=200)
    """Ids or names."""
    host_labels: Labels = Field(default_factory=dict)
    """Of the object's host: all of them have to fit."""


class AlertSignal(Wire):
    """Something that rules can be about."""

    name: str
    unit: str
    object_type: str
    description: str
    advice: str
    """What to do where it is too high."""
    minimum: float
    maximum: float
    """Bounds of a threshold."""
    every_s: float
    """How often it is looked at."""


class AlertSignals(Wire):
    """All of them, by name."""

    signals: list[AlertSignal]


class AlertRuleCreate(Wire):
    """When to raise an alert."""

    name: Name
    signal: SignalName
    operator: AlertOperator = AlertOperator.ABOVE
    threshold: Threshold
    duration_s: DurationS = 60.0
    severity: AlertSeverity = AlertSeverity.WARNING
    scope: AlertScope = AlertScope()
    advice: Text = ""
    """What to do; empty: what the signal says."""
    enabled: bool = True


class AlertRuleUpdate(Wire):
    """What is left out stays. What the rule had fired is resolved, and judged anew."""

    operator: AlertOperator | None = None
    threshold: Threshold | None = None
    duration_s: DurationS | None = None
    severity: AlertSeverity | None = None
    scope: AlertScope | None = None
    advice: Text | None = None
    enabled: bool | None = None


class AlertRule(Wire):
    """A rule as it is."""

    id: str
    name: str
    signal: str
    operator: AlertOperator
    threshold: float
    duration_s: float
    severity: AlertSeverity
    scope: AlertScope
    advice: str
    enabled: bool
    built_in: bool
    """Seeded: it can be changed and switched off, not deleted."""
    firing: int
    """Alerts of it that fire now."""
    last_error: str | None
    """Why it could not be judged the last time."""
    created_by: str
    created_at: UtcTime
    changed_at: UtcTime


class Alert(Wire):
    """What a rule says of one object."""

    id: str
    rule_id: str | None
    """``null``: the rule was deleted."""
    rule: str
    severity: AlertSeverity
    status: AlertStatus
    object_type: str
    object_id: str
    object_name: str
    value: float
    """When it was last true."""
    unit: str
    message: str
    """Object, value, threshold, since when, and what to do."""
    since: UtcTime
    """Since when it is true."""
    fired_at: UtcTime | None
    resolved_at: UtcTime | None
    resolution: str | None
    """Why it counts as resolved."""
    flaps: int
    """How often it came back shortly after it was resolved; it holds the longer."""
    silenced: bool
    """Nobody was told, because of a silence."""
    acknowledged_by: str | None
    acknowledged_at: UtcTime | None


class AlertSilenceCreate(Wire):
    """Tell nobody for a while; left out: every rule, every object."""

    rule: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Name or id."""
    object: ObjectName | None = None
    """Id or name."""
    until: UtcTime
    """At most a year from now."""
    reason: Text = ""


class AlertSilence(Wire):
    """A silence."""

    id: str
    rule_id: str | None
    rule: str | None
    object: str | None
    until: UtcTime
    reason: str
    created_by: str
    created_at: UtcTime
