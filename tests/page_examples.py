"""The examples of a page of documentation: blocks of Python, and what each prints.

A ``text`` block behind a ``python`` block is what that prints; ``...`` in it stands for anything.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:```text\n(?P<printed>.*?)^```\n)?", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Example:
    """One block of code, and what it prints."""

    code: str
    printed: str
    line: int


def examples(page: Path) -> Iterator[Example]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code"))
        yield Example(found["code"], found["printed"] or "", line)


def same(wanted: str, printed: str) -> bool:
    """Whether this is what the page says."""
    return doctest.OutputChecker().check_output(wanted, printed, doctest.ELLIPSIS)
