"""CSV for spreadsheets: what one would take for a formula is marked as text (OWASP ASVS 5.0, 1.2.10)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def line(cells: Iterable[object]) -> str:
    """One line, its end included. ``None`` is an empty cell; a text like a formula gets an apostrophe."""
    buffer = io.StringIO()
    marked = (f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in cells)
    csv.writer(buffer, lineterminator="\r\n").writerow(marked)
    return buffer.getvalue()


def unmarked(cell: str) -> str:
    """A cell that :func:`line` wrote, as it was."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
