"""``remotegpu volume``."""

from __future__ import annotations

import argparse

from remotegpu.cli import output
from remotegpu.cli.connection import connect


def list_(arguments: argparse.Namespace) -> None:
    """Homes with their size."""
    with connect(arguments) as client:
        found = client.volumes.list(owner=arguments.owner, host=arguments.host)
        output.show_list(arguments, "Volume", found)


def delete(arguments: argparse.Namespace) -> None:
    """Remove a home for good."""
    with connect(arguments) as client:
        volume = client.volumes.delete(arguments.volume)
    output.show_item(
        arguments, volume, f"{volume.id} is being removed; it is gone when its host has confirmed that."
    )
