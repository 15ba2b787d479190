"""``remotegpu dedication``."""

from __future__ import annotations

import argparse

from remotegpu.cli import output
from remotegpu.cli.connection import connect
from remotegpu.types.dedications import Dedication


def list_(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "Dedication", client.dedications.list(host=arguments.host))


def extend(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        _show(arguments, client.dedications.extend(arguments.dedication, ends_at=arguments.until))


def end(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        _show(arguments, client.dedications.end(arguments.dedication, reason=arguments.reason))


def reclaim(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.dedications.reclaim(
            arguments.dedication, reason=arguments.reason, force=arguments.force or None
        )
    _show(arguments, found)


def create(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.dedications.create(
            host=arguments.host,
            customer=arguments.customer,
            workspace=arguments.workspace,
            starts_at=arguments.start_at,
            ends_at=arguments.until,
            remark=arguments.remark,
        )
    _show(arguments, found)


def _show(arguments: argparse.Namespace, dedication: Dedication) -> None:
    """All of it, a fact a line and a step of the clean-up a line."""
    facts = dedication.model_dump(mode="json", exclude_none=True, exclude={"steps"})
    lines = [f"{name}: {value}" for name, value in facts.items()]
    lines += [f"step {step.name}: {step.status} {step.detail}".rstrip() for step in dedication.steps]
    output.show_item(arguments, dedication, "\n".join(lines))
