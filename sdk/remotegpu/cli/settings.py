"""``remotegpu setting``."""

from __future__ import annotations

import argparse
import json

from remotegpu.cli import output
from remotegpu.cli.connection import connect


def list_(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        output.show_list(arguments, "Setting", client.settings.list().settings)


def get(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.settings.get(arguments.key)
    sentence = f"{found.key} = {found.value} (default {found.default})\n{found.description}"
    output.show_item(arguments, found, sentence)


def set_(arguments: argparse.Namespace) -> None:
    """The value is of the type that the setting has: ``true``, ``90``, ``1.5``, or text."""
    with connect(arguments) as client:
        is_text = client.settings.get(arguments.key).type == "string"
        value = arguments.value if is_text else _parse(arguments.value)
        found = client.settings.set(arguments.key, value)
    output.show_item(arguments, found, f"{found.key} is {found.value}.")


def reset(arguments: argparse.Namespace) -> None:
    with connect(arguments) as client:
        found = client.settings.reset(arguments.key)
    output.show_item(arguments, found, f"{found.key} is {found.value}, its default.")


def _parse(text: str) -> bool | int | float | str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
