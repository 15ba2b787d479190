"""Commands that go on: states, events and output as they come, until Ctrl-C."""

from __future__ import annotations

import argparse
from contextlib import closing

from remotegpu.cli import output
from remotegpu.cli.connection import connect, find_environment


def watch_environment(arguments: argparse.Namespace) -> None:
    """A row for its state now, and for every change, until it is removed."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        with closing(client.environments.watch(known.id)) as states:
            output.stream_rows(arguments, "Environment", states)


def list_events(arguments: argparse.Namespace) -> None:
    """What happened, oldest first."""
    with connect(arguments) as client:
        found = client.events.list(
            subject_type=arguments.subject_type, subject_id=arguments.subject_id, after=arguments.after
        )
        output.show_list(arguments, "Event", found)


def watch_events(arguments: argparse.Namespace) -> None:
    """What happens."""
    with connect(arguments) as client:
        found = client.events.watch(
            subject_type=arguments.subject_type, subject_id=arguments.subject_id, after=arguments.after
        )
        with closing(found):
            output.stream_rows(arguments, "Event", found)


def follow_logs(arguments: argparse.Namespace) -> None:
    """Output as it comes, until the environment stops."""
    with connect(arguments) as client:
        known = find_environment(client, arguments.environment, owner=arguments.owner)
        with closing(client.environments.follow(known.id, tail_lines=arguments.tail or 100)) as pieces:
            output.stream_text(arguments, pieces)
