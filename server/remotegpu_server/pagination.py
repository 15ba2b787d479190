"""Keyset pages: a cursor is the sort key of the last row, so a page is right however rows come and go."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid

Row = TypeVar("Row")


async def page(
    db: AsyncSession,
    query: Select[Row],
    *,
    key: Sequence[Any],
    limit: int,
    cursor: str | None,
) -> tuple[list[Row], str | None]:
    """One page of ``query`` ordered by the columns ``key`` (unique together), and the next cursor.

    ``key`` holds mapped columns of the selected class, such as ``(User.username,)``.
    """
    columns: list[ColumnElement[Any]] = list(key)
    if cursor is not None:
        query = query.where(after(columns, cursor))
    rows = list(await db.scalars(query.order_by(*columns).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    rows = rows[:limit]
    return rows, encode([getattr(rows[-1], column.key or "") for column in columns])


def after(columns: Sequence[Any], cursor: str) -> ColumnElement[bool]:
    """The rows behind a cursor in the order of ``columns``; ``Invalid`` for a cursor of another list."""
    return tuple_(*columns) > _start(columns, cursor)


def before(columns: Sequence[Any], cursor: str) -> ColumnElement[bool]:
    """The same for a list that goes down."""
    return tuple_(*columns) < _start(columns, cursor)


def _start(columns: Sequence[Any], cursor: str) -> ColumnElement[Any]:
    start = decode(cursor, len(columns))
    if not all(
        isinstance(value, column.type.python_type) for value, column in zip(start, columns, strict=True)
    ):
        raise _not_ours()
    return tuple_(*start)


def encode(values: Sequence[Any]) -> str:
    """An opaque cursor for the sort key of a row."""
    plain = [{"t": value.isoformat()} if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def decode(cursor: str, length: int) -> list[Any]:
    """The sort key in a cursor; raises ``Invalid`` for one that this server did not make."""
    try:
        plain = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        values = [datetime.fromisoformat(value["t"]) if isinstance(value, dict) else value for value in plain]
    except (ValueError, KeyError, TypeError):
        values = []
    known = all(isinstance(value, (str, int, datetime)) for value in values)
    if len(values) != length or not known:
        raise _not_ours()
    return values


def _not_ours() -> Invalid:
    return Invalid("The cursor is not one of this list.", hint="Start again without a cursor.")
