"""``remotegpu reservation``."""

from __future__ import annotations

import argparse

from remotegpu.cli import output
from remotegpu.cli.connection import connect


def list_(arguments: argparse.Namespace) -> None:
    """The next to start first."""
    with connect(arguments) as client:
        output.show_list(arguments, "Reservation", client.reservations.list(over=arguments.all or None))


def create(arguments: argparse.Namespace) -> None:
    """Reserve GPUs for a period."""
    with connect(arguments) as client:
        made = client.reservations.create(
            name=arguments.name,
            gpus=arguments.gpus,
            gpu_model=arguments.gpu_model,
            starts_at=arguments.starts,
            ends_at=arguments.ends,
            workspace=arguments.workspace,
            customer=arguments.customer,
        )
    first, last = made.starts_at.astimezone(), made.ends_at.astimezone()
    period = f"from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
    output.show_item(arguments, made, f"{made.id}: {made.gpus} {made.gpu_model or 'GPUs'} {period}.")


def cancel(arguments: argparse.Namespace) -> None:
    """Give one back."""
    with connect(arguments) as client:
        over = client.reservations.cancel(arguments.reservation)
    output.show_item(arguments, over, f"{over.name} is {over.state}.")


def calendar(arguments: argparse.Namespace) -> None:
    """What is promised in the next two weeks, or in the given period."""
    with connect(arguments) as client:
        found = client.reservations.calendar(from_at=arguments.starts, until_at=arguments.ends)
    output.show_list(arguments, "CalendarEntry", found.entries)
