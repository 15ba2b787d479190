"""``remotegpu quota``."""

from __future__ import annotations

import argparse

from remotegpu import _tables
from remotegpu.cli import output
from remotegpu.cli.connection import connect


def show(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "QuotaLine", client.quotas.mine().lines)


def get(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "QuotaLine", client.quotas.get(arguments.subject, arguments.name).lines)


def set_(arguments: argparse.Namespace) -> None:
    """Change limits, and say who is over one now."""
    with connect(arguments) as client:
        change = client.quotas.set(arguments.subject, arguments.name, limits=dict(arguments.limit))
    output.show_list(arguments, "QuotaLine", change.lines)
    if not arguments.json:
        for one in change.over:
            output.say(arguments, one.message)


def check(arguments: argparse.Namespace) -> None:
    """Say whether the limits would allow it, and what to do if not."""
    amounts = {resource: limit or 0 for resource, limit in arguments.amount}
    with connect(arguments) as client:
        verdict = client.quotas.check(amounts, workspace=arguments.workspace)
    output.show_item(arguments, verdict, f"{verdict.message} {verdict.hint or ''}".rstrip())


def request(arguments: argparse.Namespace) -> None:
    """Ask for a higher limit."""
    resource, amount = arguments.limit
    with connect(arguments) as client:
        made = client.quota_requests.create(
            resource=resource,
            amount=amount,
            why=arguments.why,
            until=arguments.until,
            subject=arguments.subject,
            subject_id=arguments.name,
        )
    output.show_item(arguments, made, f"Asked as {made.id}: {made.resource} {made.amount}. You will be told.")


def requests(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "QuotaRequest", client.quota_requests.list(status=arguments.status))


def approve(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        made = client.quota_requests.approve(
            arguments.request, amount=arguments.amount, until=arguments.until, note=arguments.note
        )
    until = f" until {_tables.cell('until', made.granted_until)}" if made.granted_until else ""
    sentence = f"{made.subject_name} may have {made.resource} {made.granted_amount}{until}."
    output.show_item(arguments, made, sentence)


def refuse(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        made = client.quota_requests.refuse(arguments.request, note=arguments.note)
    output.show_item(arguments, made, f"{made.requested_by} reads why.")
