"""What is promised against what there is: pure, on GPUs, holders and promises with their times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, eq=False)
class PoolGpu:
    """A GPU that can be promised, and who holds it until when."""

    id: str
    host_id: str
    model: str
    labels: Mapping[str, str]
    held: bool = False
    ends_at: datetime | None = None
    """Of its holder; ``None``: not known."""
    reservation_id: str | None = None
    """In which its holder started."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A reservation that is not over."""

    id: str
    gpus: int
    model: str | None
    starts_at: datetime
    ends_at: datetime
    customer_id: str
    workspace_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def covers(self, gpu: PoolGpu) -> bool:
        """Whether this GPU can serve it."""
        if self.model not in (None, gpu.model):
            return False
        return all(gpu.labels.get(name) == value for name, value in self.labels.items())

    def is_for(self, *, customer_id: str, workspace_id: str) -> bool:
        return self.customer_id == customer_id and self.workspace_id in (None, workspace_id)


def shortage(
    wanted: Promise, pool: Sequence[PoolGpu], others: Iterable[Promise], *, gone_by: datetime
) -> tuple[int, datetime] | None:
    """How many GPUs are missing at the worst moment of ``wanted``, and when; ``None``: it can be promised.

    Work without a known end counts as gone at ``gone_by``.
    """
    overlapping = [one for one in others if one.starts_at < wanted.ends_at and one.ends_at > wanted.starts_at]
    moments = {wanted.starts_at} | {max(one.starts_at, wanted.starts_at) for one in overlapping}
    worst: tuple[int, datetime] | None = None
    for at in sorted(moments):
        missing = wanted.gpus - _left(wanted, pool, overlapping, at=at, gone_by=gone_by)
        if missing > 0 and (worst is None or missing > worst[0]):
            worst = (missing, at)
    return worst


def _left(
    wanted: Promise, pool: Sequence[PoolGpu], others: Sequence[Promise], *, at: datetime, gone_by: datetime
) -> int:
    live = [one for one in others if one.starts_at <= at < one.ends_at]
    promised = {one.id for one in live}
    open_ = {
        gpu.id: gpu
        for gpu in pool
        if not gpu.held or gpu.reservation_id in promised or (gpu.ends_at or gone_by) <= at
    }
    for other in sorted(live, key=lambda one: sum(one.covers(gpu) for gpu in pool)):
        usable = [gpu for gpu in open_.values() if other.covers(gpu)]
        for gpu in sorted(usable, key=lambda gpu: (wanted.covers(gpu), gpu.id))[: other.gpus]:
            del open_[gpu.id]
    return sum(wanted.covers(gpu) for gpu in open_.values())


def withheld(
    pool: Sequence[PoolGpu],
    promises: Iterable[Promise],
    *,
    now: datetime,
    reservation_id: str | None,
    ends_at: datetime | None,
    horizon: datetime,
) -> frozenset[PoolGpu]:
    """Free GPUs that a start must leave alone: promised to others at a time that it would reach into.

    A start without a known end reaches to ``horizon``, no further: promises after that are served by what
    ends until then.
    """
    reach = horizon if ends_at is None else ends_at
    kept: set[PoolGpu] = set()
    for promise in sorted(promises, key=lambda one: (one.starts_at, one.id)):
        if promise.id == reservation_id or promise.starts_at >= reach or promise.ends_at <= now:
            continue
        usable = [gpu for gpu in pool if promise.covers(gpu) and gpu not in kept]
        used = sum(gpu.reservation_id == promise.id for gpu in usable)
        back = sum(
            gpu.held
            and gpu.reservation_id != promise.id
            and gpu.ends_at is not None
            and gpu.ends_at <= promise.starts_at
            for gpu in usable
        )
        missing = max(promise.gpus - used - back, 0)
        free = sorted((gpu for gpu in usable if not gpu.held), key=lambda gpu: gpu.id)
        kept.update(free[:missing])
    return frozenset(kept)
