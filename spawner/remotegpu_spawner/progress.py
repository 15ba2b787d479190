"""What the progress page says, from an environment as the server shows it."""

from __future__ import annotations

from typing import TypedDict

from remotegpu.types.environments import Environment, EnvironmentStatus, Reason


class ProgressEvent(TypedDict):
    """One event of the hub's progress stream. Only plain text: the hub inserts ``html_message`` unescaped."""

    progress: int
    message: str


_PERCENT = {Reason.PLACED: 15, Reason.PULLING: 20, Reason.CREATING: 70, Reason.WAITING_FOR_SERVER: 85}
_PULL_SHARE = 50
"""Percent of the bar that belongs to the pull."""


def progress_event(environment: Environment) -> ProgressEvent:
    """The event that describes where a starting environment is."""
    return ProgressEvent(progress=_percent(environment), message=_message(environment))


def _percent(environment: Environment) -> int:
    match environment.status:
        case EnvironmentStatus.PENDING:
            return 5
        case EnvironmentStatus.RUNNING:
            return 95
    percent = _PERCENT.get(environment.reason, 10)
    if environment.reason is Reason.PULLING:
        percent += (environment.progress_percent or 0) * _PULL_SHARE // 100
    return percent


def _message(environment: Environment) -> str:
    message = environment.message or str(environment.reason)
    if environment.status is EnvironmentStatus.PENDING and environment.queue_position is not None:
        message = f"Waiting at position {environment.queue_position}: {message}"
    if (
        environment.reason is Reason.PULLING
        and environment.progress_percent is not None
        and "%" not in message
    ):
        message = f"{message} {environment.progress_percent} %"
    return message
