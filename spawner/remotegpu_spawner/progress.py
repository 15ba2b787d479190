"""What the progress page says, from an environment as the server shows it."""

from __future__ import annotations

from datetime import timedelta
from typing import TypedDict

from remotegpu.types.environments import Environment, EnvironmentStatus, Reason
from remotegpu.types.queue import StartEstimate


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


def likely(environment: Environment) -> str:
    """The estimated start in words, on the hub's clock; empty when there is none."""
    return estimate_in_words(environment.wait.estimate if environment.wait else None)


def estimate_in_words(estimate: StartEstimate | None) -> str:
    """The range on the hub's clock: ``likely between 14:05 and 15:20``."""
    if estimate is None:
        return ""
    first, last = estimate.p50_at.astimezone(), estimate.p90_at.astimezone()
    clock = "%H:%M" if last - first.now(first.tzinfo) < timedelta(hours=12) else "%a %H:%M"
    early, late = f"{first:{clock}}", f"{last:{clock}}"
    return f"likely about {early}" if early == late else f"likely between {early} and {late}"


def _message(environment: Environment) -> str:
    message = environment.message or str(environment.reason)
    if environment.status is EnvironmentStatus.PENDING and environment.queue_position is not None:
        message = " ".join(
            [f"Waiting at position {environment.queue_position}: {message}", *_prospects(environment)]
        )
    if (
        environment.reason is Reason.PULLING
        and environment.progress_percent is not None
        and "%" not in message
    ):
        message = f"{message} {environment.progress_percent} %"
    return message


def _prospects(environment: Environment) -> list[str]:
    """When, behind whom, and what would start it now."""
    wait = environment.wait
    if wait is None:
        return []
    when = likely(environment)
    lines = [f"Start {when}." if when else wait.estimate_note or ""]
    lines += [f"Ahead: {'; '.join(wait.ahead)}."] if wait.ahead else []
    return [*(line for line in lines if line), *(offer.message for offer in wait.counter_offers)]
