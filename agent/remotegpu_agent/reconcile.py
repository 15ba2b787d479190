"""Pure: what is wanted and what is there -> what to do. Idempotent; it never looks at the past alone.

The executor performs the steps in order and plans again after every change, so a plan is only ever a
suggestion for the state that it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remotegpu.types.agent import DesiredState, Workload
from remotegpu_agent.runtime import Actual, ActualState


@dataclass(frozen=True)
class Pull:
    workload: Workload


@dataclass(frozen=True)
class Create:
    """Create and start: one step, because nothing may come between."""

    workload: Workload


@dataclass(frozen=True)
class Adopt:
    """It runs: follow it until its server answers, and report."""

    actual: Actual


@dataclass(frozen=True)
class Stop:
    actual: Actual
    grace_s: float


@dataclass(frozen=True)
class Remove:
    """Remove that generation and everything older."""

    workload_id: str
    generation: int


@dataclass(frozen=True)
class ReportExited:
    actual: Actual


@dataclass(frozen=True)
class ReportFailed:
    """Say again why this generation could not start."""


@dataclass(frozen=True)
class ReportVanished:
    """It was started here, and somebody else removed it."""


@dataclass(frozen=True)
class ReportAbsent:
    """Only after a listing that shows nothing of it."""

    generation: int


@dataclass(frozen=True)
class Quarantine:
    """No desired workload explains it: leave it alone and name it."""

    actual: Actual


Step = (
    Pull
    | Create
    | Adopt
    | Stop
    | Remove
    | ReportExited
    | ReportFailed
    | ReportVanished
    | ReportAbsent
    | Quarantine
)


@dataclass(frozen=True)
class Past:
    """What the agent knows of the desired generation beyond what can be listed."""

    launched: bool = False
    """It was started on this host once."""
    failed: bool = False
    """It was tried and given up; only a new generation is tried again."""


def plan(desired: Workload | None, actual: Sequence[Actual], past: Past) -> list[Step]:
    """The steps that lead one workload from what is there to what is wanted."""
    if desired is None:
        return [Quarantine(instance) for instance in actual]
    if desired.desired is DesiredState.ABSENT:
        return [*_clear(actual, desired.stop_grace_s), ReportAbsent(desired.generation)]
    if desired.desired is not DesiredState.RUNNING:
        return []  # a word of a newer server: leave everything as it is
    if any(instance.generation > desired.generation for instance in actual):
        return []  # this desired set is older than what runs; a newer one is on its way
    current = [instance for instance in actual if instance.generation == desired.generation]
    keep = _keep(current)
    others = [instance for instance in actual if instance is not keep]
    if past.failed:
        return [*_clear(actual, desired.stop_grace_s), ReportFailed()]
    if keep is None:
        clear = _clear(others, desired.stop_grace_s)
        return [*clear, ReportVanished()] if past.launched else [*clear, Pull(desired), Create(desired)]
    older = [instance for instance in others if instance.generation < desired.generation]
    follow = Adopt(keep) if keep.state is ActualState.RUNNING else ReportExited(keep)
    return [*_clear(older, desired.stop_grace_s), follow]


def _keep(current: list[Actual]) -> Actual | None:
    """The instance to go on with: the one that runs, else the one that ended.

    One that was only created lost nothing yet and may lack its network: it is made anew.
    """
    for state in (ActualState.RUNNING, ActualState.EXITED):
        for instance in current:
            if instance.state is state:
                return instance
    return None


def _clear(instances: Sequence[Actual], grace_s: float) -> list[Step]:
    if not instances:
        return []
    newest = max(instances, key=lambda instance: instance.generation)
    stops: list[Step] = [
        Stop(instance, grace_s) for instance in instances if instance.state is ActualState.RUNNING
    ]
    return [*stops, Remove(newest.workload_id, newest.generation)]
