"""How a failed command ends: what it says, and its exit code."""

from __future__ import annotations

import json
import sys

from remotegpu._tables import printable
from remotegpu.errors import (
    ApiError,
    ConnectionFailed,
    Invalid,
    NotConfigured,
    RequestTimeout,
    ServerError,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
)

REFUSED = 1
USAGE = 2
NOT_REACHABLE = 3
NOT_SIGNED_IN = 4
INTERRUPTED = 130
PIPE_CLOSED = 141


class UsageError(Exception):
    """The command cannot be meant like this."""


def exit_code(error: Exception) -> int:
    """The exit code for an error."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, Unauthorized | NotConfigured):
        return NOT_SIGNED_IN
    if isinstance(error, ConnectionFailed | RequestTimeout | Unavailable | UnexpectedAnswer):
        return NOT_REACHABLE
    return REFUSED


def report(error: Exception, *, as_json: bool) -> int:
    """Say on standard error what is wrong and what to do about it."""
    if as_json:
        print(json.dumps(_facts(error)), file=sys.stderr)
        return exit_code(error)
    if not isinstance(error, ApiError):
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"remotegpu: {printable(line)}", file=sys.stderr)
        return exit_code(error)
    print(f"remotegpu: {printable(error.detail)}", file=sys.stderr)
    for line in _field_errors(error):
        print(f"  {printable(line)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)
    if isinstance(error, ServerError) and error.request_id:
        print(f"request: {printable(error.request_id)}", file=sys.stderr)
    return exit_code(error)


def _facts(error: Exception) -> dict[str, object]:
    if isinstance(error, ApiError):
        return {
            "error": error.error,
            "detail": error.detail,
            "hint": error.hint,
            "request_id": error.request_id,
            "data": error.data,
        }
    return {"error": type(error).__name__, "detail": str(error), "hint": None, "request_id": "", "data": {}}


def _field_errors(error: ApiError) -> list[str]:
    listed = error.data.get("errors") if isinstance(error, Invalid) else None
    if not isinstance(listed, list):
        return []
    lines = []
    for entry in listed:
        if isinstance(entry, dict):
            where = entry.get("loc") or entry.get("field") or ""
            place = ".".join(map(str, where)) if isinstance(where, list) else str(where)
            lines.append(f"{place}: {entry.get('msg') or entry.get('message') or entry}")
        else:
            lines.append(str(entry))
    return [line for line in lines if line not in error.detail]
