"""Tables for people, JSON for programs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from remotegpu import _tables

if TYPE_CHECKING:
    from remotegpu.types.wire import Wire


def show_list(arguments: argparse.Namespace, kind: str, items: Iterable[Wire]) -> None:
    """Print a list of one wire type."""
    found = list(items)
    if arguments.json:
        _print_json([item.model_dump(mode="json") for item in found])
    elif found:
        _print_table(
            [_tables.heading(field).upper() for field in _tables.columns(kind)],
            [_tables.row(kind, item) for item in found],
        )
    else:
        print("none", file=sys.stderr)


def show_item(arguments: argparse.Namespace, item: Wire, sentence: str) -> None:
    """Print one thing: as JSON, or what happened in one sentence."""
    if arguments.json:
        _print_json(item.model_dump(mode="json"))
    else:
        print("\n".join(_tables.printable(line) for line in sentence.splitlines()))


def show_text(arguments: argparse.Namespace, text: str, **facts: object) -> None:
    """Print text that is not ours to change: a script, a container's output."""
    if arguments.json:
        _print_json(facts)
    else:
        sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")


def stream_rows(arguments: argparse.Namespace, kind: str, items: Iterable[Wire]) -> None:
    """Print items as they come: a row each, or a JSON object on a line of its own."""
    for item in items:
        if arguments.json:
            show_line(item)
        else:
            print("  ".join(_tables.row(kind, item)), flush=True)


def show_line(item: Wire) -> None:
    """Print one thing as JSON on a line of its own, behind others that came like that."""
    print(json.dumps(item.model_dump(mode="json"), ensure_ascii=False), flush=True)


def stream_text(arguments: argparse.Namespace, pieces: Iterable[str]) -> None:
    """Print text as it comes: as it is, or in JSON objects on lines of their own."""
    for piece in pieces:
        if arguments.json:
            print(json.dumps({"text": piece}, ensure_ascii=False), flush=True)
        else:
            sys.stdout.write(piece)
            sys.stdout.flush()


def say(arguments: argparse.Namespace, sentence: str, **facts: object) -> None:
    """Print what happened where the server answers with nothing."""
    if arguments.json:
        _print_json(facts)
    else:
        print(_tables.printable(sentence))


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in [head, *rows]:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        print(line[:limit])
