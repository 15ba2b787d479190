"""``remotegpu alert|alert-rule|alert-silence``."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta

from remotegpu.cli import output
from remotegpu.cli.connection import connect


def list_(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        status = None if arguments.all else "firing"
        found = client.alerts.list(status=status, severity=arguments.severity, rule=arguments.rule)
        output.show_list(arguments, "Alert", found)


def show(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        one = client.alerts.get(arguments.alert)
        output.show_item(arguments, one, f"{one.severity}, {one.status}: {one.message}")


def acknowledge(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        one = client.alerts.acknowledge(arguments.alert)
        output.show_item(
            arguments, one, f"{one.acknowledged_by} looks after {one.rule} of {one.object_name}."
        )


def list_rules(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "AlertRule", client.alert_rules.list())


def list_signals(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "AlertSignal", client.alert_rules.signals().signals)


def create_rule(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        made = client.alert_rules.create(
            name=arguments.name,
            signal=arguments.signal,
            operator=arguments.operator,
            threshold=arguments.threshold,
            duration_s=arguments.duration,
            severity=arguments.severity,
        )
        output.show_item(
            arguments,
            made,
            f"{made.name}: {made.signal} {made.operator} {made.threshold:g} is {made.severity}.",
        )


def set_rule(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        changed = client.alert_rules.update(
            arguments.rule,
            operator=arguments.operator,
            threshold=arguments.threshold,
            duration_s=arguments.duration,
            severity=arguments.severity,
        )
        output.show_item(
            arguments, changed, f"{changed.name}: {changed.signal} {changed.operator} {changed.threshold:g}."
        )


def enable_rule(arguments: argparse.Namespace) -> None:
    _switch(arguments, enabled=True)


def disable_rule(arguments: argparse.Namespace) -> None:
    _switch(arguments, enabled=False)


def _switch(arguments: argparse.Namespace, *, enabled: bool) -> None:
    with connect(arguments) as client:
        changed = client.alert_rules.update(arguments.rule, enabled=enabled)
        output.show_item(arguments, changed, f"{changed.name} is {'judged' if enabled else 'switched off'}.")


def delete_rule(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.alert_rules.delete(arguments.rule)
    output.say(arguments, f"The rule {arguments.rule} is deleted.", rule=arguments.rule)


def list_silences(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "AlertSilence", client.alert_silences.list())


def create_silence(arguments: argparse.Namespace) -> None:
    until = datetime.now(UTC) + timedelta(hours=arguments.hours)
    with connect(arguments) as client:
        made = client.alert_silences.create(
            until=until, rule=arguments.rule, object=arguments.object, reason=arguments.reason
        )
        output.show_item(arguments, made, f"Silence {made.id} holds until {made.until:%Y-%m-%d %H:%M} UTC.")


def delete_silence(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        client.alert_silences.delete(arguments.silence)
    output.say(arguments, f"The silence {arguments.silence} has ended.", id=arguments.silence)
