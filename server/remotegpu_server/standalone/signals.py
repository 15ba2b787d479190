"""Ctrl-C, SIGTERM and a closed terminal become an exception, but never between a start and its record."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_holding = False
_arrived = False


class StopWanted(BaseException):
    """Somebody wants us to stop. No error, so nothing that handles errors may catch it."""


def listen() -> None:
    """From now on a signal raises StopWanted."""
    for number in _NUMBERS:
        signal.signal(number, _raise)


def ignore() -> None:
    """From now on signals are lost: a second Ctrl-C must not leave half of everything running."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Keep a signal until the block is done, so that what it starts is also written down."""
    global _holding
    _holding = True
    try:
        yield
    finally:
        _holding = False
    if _arrived:
        raise StopWanted


def _raise(_number: int, _frame: FrameType | None) -> None:
    global _arrived
    _arrived = True
    if not _holding:
        raise StopWanted
