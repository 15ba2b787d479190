"""``remotegpu ssh-key``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import remotegpu
from remotegpu.cli import output
from remotegpu.cli.connection import connect
from remotegpu.types.ssh_keys import SshKey


def list_(arguments: argparse.Namespace) -> None:
    """The own keys."""
    with connect(arguments) as client:
        output.show_list(arguments, "SshKey", client.ssh_keys.list())


def add(arguments: argparse.Namespace) -> None:
    """Register the key of a file."""
    try:
        text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).expanduser().read_text()
    except OSError as error:
        raise remotegpu.Invalid(f"{arguments.file} cannot be read: {error.strerror}.") from error
    name = arguments.name or ("key" if arguments.file == "-" else Path(arguments.file).stem)
    with connect(arguments) as client:
        made = client.ssh_keys.create(name=name, public_key=text.strip())
    output.show_item(
        arguments, made, f"{made.name} ({made.fingerprint}) opens your environments within seconds."
    )


def remove(arguments: argparse.Namespace) -> None:
    """Remove one by its id, fingerprint or name."""
    with connect(arguments) as client:
        key = _find(client, arguments.key)
        client.ssh_keys.delete(key.id)
    output.say(
        arguments,
        f"{key.name} opens nothing any more within seconds; sessions that are open stay open.",
        id=key.id,
        name=key.name,
    )


def _find(client: remotegpu.Client, wanted: str) -> SshKey:
    found = [key for key in client.ssh_keys.list() if wanted in (key.id, key.fingerprint, key.name)]
    if len(found) != 1:
        what = "No key" if not found else f"{len(found)} keys"
        raise remotegpu.NotFound(
            f"{what} of yours is called {wanted}.", hint="`remotegpu ssh-key list` shows them; name its id."
        )
    return found[0]
