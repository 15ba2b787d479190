"""What a failing step tells the person who typed `make up`."""

from __future__ import annotations

from pathlib import Path


class StepFailed(Exception):
    """A step cannot be done. Says what failed, why, and what to do."""

    def __init__(self, step: str, why: str, advice: str, *, log: Path | None = None) -> None:
        super().__init__(f"{step}: {why}")
        self.step = step
        self.why = why
        self.advice = advice
        self.log = log
