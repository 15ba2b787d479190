"""Answers as pandas DataFrames: a flat column for each field, typed by the wire type and not by the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from remotegpu.errors import MissingExtra
from remotegpu.types.wire import UtcTime, Wire

if TYPE_CHECKING:
    from pandas import DataFrame

_DTYPES: tuple[tuple[frozenset[Any], str], ...] = (
    (frozenset({bool}), "boolean"),
    (frozenset({int}), "Int64"),
    (frozenset({float}), "float64"),
    (frozenset({int, float}), "float64"),
    (frozenset({UtcTime}), "datetime64[us, UTC]"),
)
"""Nullable ones, so that an absent number neither becomes 0 nor turns its column into text."""


def require_pandas() -> Any:
    """The pandas module. :raises MissingExtra: it is not installed."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise MissingExtra("to_pandas() needs pandas: pip install 'remotegpu[pandas]'") from error
    return pandas


def frame(
    kind: type[Wire], items: Sequence[Wire], *, first: Mapping[str, Sequence[object]] | None = None
) -> DataFrame:
    """One row for each item, with the columns of `kind` also when there is none. Nested objects become
    columns of their own (``metrics_power_w``); lists and mappings with free keys stay as they are.
    `first` are columns to put before.
    """
    pandas = require_pandas()
    columns = {name: pandas.Series(list(values)) for name, values in (first or {}).items()}
    for name, kinds, values in _columns(kind, items, prefix=""):
        columns[name] = pandas.Series([_plain(value) for value in values], dtype=_dtype(kinds))
    return pandas.DataFrame(columns)


def row_type(kind: type[Wire], field: str) -> type[Wire]:
    """The wire type of the items of a list field."""
    kind.model_rebuild()
    row: type[Wire] = get_args(kind.model_fields[field].annotation)[0]
    return row


def _columns(
    kind: type[Wire], items: Sequence[Any], *, prefix: str
) -> list[tuple[str, frozenset[Any], list[Any]]]:
    kind.model_rebuild()  # built on first use only, and until then its annotations may be names
    found = []
    for name, field in kind.model_fields.items():
        kinds = _alternatives(field.annotation)
        values = [None if item is None else getattr(item, name) for item in items]
        nested = next((one for one in kinds if isinstance(one, type) and issubclass(one, Wire)), None)
        if nested is not None:
            found += _columns(nested, values, prefix=f"{prefix}{name}_")
        else:
            found.append((prefix + name, kinds, values))
    return found


def _alternatives(annotation: Any) -> frozenset[Any]:
    """What a field may be besides ``None``, without constraints."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return frozenset().union(*(_alternatives(one) for one in get_args(annotation) if one is not NoneType))
    return frozenset({annotation})


def _dtype(kinds: frozenset[Any]) -> str:
    for known, dtype in _DTYPES:
        if kinds == known:
            return dtype
    texts = all(isinstance(one, type) and issubclass(one, str | Enum) for one in kinds)
    return "string" if texts else "object"


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Wire):
        return value.model_dump(mode="json")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
