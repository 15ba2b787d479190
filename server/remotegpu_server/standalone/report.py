"""What a person sees: one line for each step, with its time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import tail


@dataclass
class Step:
    """A running step; `detail` is what its line says."""

    detail: str = ""


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextmanager
def step(name: str) -> Iterator[Step]:
    """Print the step's name, what it found, and how long it took."""
    began = time.monotonic()
    running = Step()
    yield running
    say(f"  {name:<10}{running.detail:<78}{time.monotonic() - began:6.1f} s")


def say_failure(failure: StepFailed) -> None:
    """What failed, why, the log's last words, and what to do."""
    say(f"\nFAILED  {failure.step}: {failure.why}")
    if failure.log is not None:
        indented = tail(failure.log).replace("\n", "\n    ")
        say(f"  last lines of {failure.log}:\n    {indented}")
    say(f"  what to do: {failure.advice}\n")
