"""Pure: how an attempt ended -> what the server and the person are told."""

from __future__ import annotations

import os
from pathlib import Path

from remotegpu.types.agent import AttemptOutcome, AttemptResult, ClaimedAttempt
from remotegpu.types.environments import Reason
from remotegpu_agent.runtime import StartRefused
from remotegpu_agent.tasks.folders import Stop
from remotegpu_agent.tasks.runtime import End

NOT_FOUND = 127
KILLED = 137
FULL_BYTES = 2**20
"""A disk with less than this left counts as full."""


def of_refusal(refused: StartRefused) -> AttemptResult:
    """It could not be started; nothing of it ran."""
    code = NOT_FOUND if refused.reason is Reason.COMMAND_NOT_FOUND else None
    outcome = AttemptOutcome.LOST if refused.reason is Reason.PROCESS_LOST else AttemptOutcome.FAILED
    return _result(outcome, refused.reason, refused.message, exit_code=code)


def of_lost(*, rebooted: bool) -> AttemptResult:
    """It was started here once, and nothing is known of its end."""
    if rebooted:
        return _result(AttemptOutcome.LOST, Reason.HOST_REBOOTED, "Its host was restarted.")
    return _result(AttemptOutcome.LOST, Reason.PROCESS_LOST, "Its agent came back and found nothing of it.")


def of_stop(stop: Stop, end: End | None) -> AttemptResult:
    """It was ended from outside; ``end`` is there if it ran."""
    code = end.exit_code if end is not None else None
    peak = end.peak_memory_bytes if end is not None else None
    reason: str
    if stop.why == "timeout":
        outcome, reason, message = AttemptOutcome.TIMED_OUT, Reason.TIMEOUT, "It ran longer than its timeout."
    elif stop.why == "fenced":
        outcome, reason = AttemptOutcome.LOST, Reason.LEASE_LOST
        message = "Its host had no contact with the server for too long, and ended it."
    else:
        # A newer server may have reasons that this agent does not know: it gets back what it said.
        outcome, reason = AttemptOutcome.CANCELLED, stop.reason or Reason.CANCELLED
        message = "It was stopped." if end is not None else "It was stopped before it began."
    return _result(outcome, reason, message, exit_code=code, peak_memory_bytes=peak)


def of_end(spec: ClaimedAttempt, end: End, *, full: str | None) -> AttemptResult:
    """It ended by itself. ``full``: a place of its own without space left."""
    code, peak = end.exit_code, end.peak_memory_bytes
    if code == 0:
        return _result(AttemptOutcome.SUCCEEDED, Reason.SUCCEEDED, "", exit_code=0, peak_memory_bytes=peak)
    if end.cause is not None:
        return _result(end.cause.outcome, end.cause.reason, end.cause.message, exit_code=code)
    if end.out_of_memory:
        reason, message = Reason.OUT_OF_MEMORY, _out_of_memory(spec, peak)
    elif code is None:
        reason, message = Reason.EXIT_CODE, "It was killed from outside; nobody knows its exit code."
    elif full is not None:
        reason, message = Reason.DISK_FULL, f"It ended with exit code {code}, and {full} has no space left."
    elif code == NOT_FOUND:
        reason, message = Reason.COMMAND_NOT_FOUND, _not_found(spec, end.search_path)
    else:
        reason, message = Reason.EXIT_CODE, f"It ended with exit code {code}.{_signal(code)}"
    return _result(AttemptOutcome.FAILED, reason, message, exit_code=code, peak_memory_bytes=peak)


def full_place(places: dict[str, Path]) -> str | None:
    """The name of the first place whose disk is full."""
    for name, path in places.items():
        try:
            found = os.statvfs(path)
        except OSError:
            continue
        if found.f_bavail * found.f_frsize < FULL_BYTES:
            return name
    return None


def _out_of_memory(spec: ClaimedAttempt, peak: int | None) -> str:
    used = f" It used up to {peak / 2**20:.0f} MiB." if peak is not None else ""
    return f"It needed more than its {spec.memory_bytes / 2**20:.0f} MiB of memory.{used}"


def _not_found(spec: ClaimedAttempt, searched: str | None) -> str:
    looked = f" Looked in PATH={searched}." if searched else ""
    if spec.script is not None:
        return f"A command of the script was not found (exit code 127); the output says which.{looked}"
    name = spec.command[0] if spec.command else "The command"
    return f"{name} was not found (exit code 127), or something that it ran was not.{looked}"


def _signal(code: int) -> str:
    return f" Codes above 128 mean a signal: {code - 128}." if 128 < code < 128 + 65 else ""


def _result(
    outcome: AttemptOutcome,
    reason: str,
    message: str,
    *,
    exit_code: int | None = None,
    peak_memory_bytes: int | None = None,
) -> AttemptResult:
    return AttemptResult(
        epoch=0,
        status=outcome,
        exit_code=exit_code,
        reason=str(reason)[:256],
        message=message[:2048],
        peak_memory_bytes=peak_memory_bytes,
    )
