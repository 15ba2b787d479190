"""The typical requests, learned from what has arrived, and what they make of free GPUs.

A free part of a GPU is worth what typical requests will make of it: with a number of arrivals to come, each
of which may be taken or left to another GPU, the best that can be expected to be filled. The rest is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remotegpu_server.placement.request import Request

Floats = npt.NDArray[np.float64]

WHOLE = 1000
"""A GPU is counted in thousandths."""
STEP = 10
"""Thousandths in one step of the table of losses."""
STEPS = WHOLE // STEP
ABSENT = 0
"""Index in the table of a slot that has no GPU; what is free stands at ``1 + thousandths // STEP``."""
CHANCES = 24
"""Arrivals that a free part may wait for. Anything from 16 to 32 serves."""
GROWTH = 1.5
"""Learn again when this many times more has arrived."""
KEPT = 2000
"""Kinds of requests remembered."""
MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests that are the same to a GPU."""

    gpus: int
    milli: int
    """Of each GPU."""
    cpus: float
    memory_bytes: int
    gpu_models: tuple[str, ...] = ()
    min_gpu_memory_bytes: int | None = None
    max_gpu_memory_bytes: int | None = None

    @property
    def constrained(self) -> bool:
        return bool(self.gpu_models or self.min_gpu_memory_bytes or self.max_gpu_memory_bytes)


_PRIOR = tuple(Kind(gpus=n, milli=WHOLE, cpus=4.0 * n, memory_bytes=n << 35) for n in (1, 2, 4, 8))
"""What is typical before anything has arrived."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """The mix as scoring uses it."""

    loss: Floats
    """Thousandths expected to stay unfilled, by free part (see ``ABSENT``)."""
    multi: Floats
    """Value of free whole GPUs of one host to requests for several, by their number."""
    milli_per_cpu: float
    milli_per_byte: float
    """How much GPU a CPU or a byte of memory feeds in a typical request."""
    demand: tuple[tuple[Kind, float], ...]
    """Kinds that only some GPUs serve, with their share of all demand."""


class Mix:
    """Counts of what has arrived."""

    def __init__(self, seen: Iterable[tuple[Kind, int]] = ()) -> None:
        self._seen: Counter[Kind] = Counter(dict.fromkeys(_PRIOR, 1))
        for kind, count in seen:
            self._seen[kind] += count
        self._arrived = self._seen.total()
        self._next = 0.0
        self.lesson = self._learn()
        self.version = 0
        """Grows when the lesson changes."""

    def saw(self, request: Request, *, gpu_memory_bytes: int) -> None:
        """Count a request; ``gpu_memory_bytes`` is the usual size of a GPU, for shares."""
        if request.gpus == 0 or request.mig_profile is not None:
            return
        self._seen[kind_of(request, gpu_memory_bytes=gpu_memory_bytes)] += 1
        self._arrived += 1
        if self._arrived >= self._next:
            self.lesson = self._learn()
            self.version += 1

    def _learn(self) -> Lesson:
        if len(self._seen) > KEPT:
            self._seen = Counter(dict(self._seen.most_common(KEPT // 2)))
        self._next = self._arrived * GROWTH
        total = self._seen.total()
        milli = sum(kind.gpus * kind.milli * count for kind, count in self._seen.items())
        cpus = sum(kind.cpus * count for kind, count in self._seen.items())
        memory = sum(kind.memory_bytes * count for kind, count in self._seen.items())
        return Lesson(
            loss=_losses(self._seen, total),
            multi=_multi(self._seen, total),
            milli_per_cpu=milli / cpus,
            milli_per_byte=milli / memory,
            demand=tuple(
                (kind, kind.gpus * kind.milli * count / milli)
                for kind, count in self._seen.items()
                if kind.constrained
            ),
        )


def kind_of(request: Request, *, gpu_memory_bytes: int) -> Kind:
    """The request as the mix counts it."""
    share = request.gpu_memory_bytes
    return Kind(
        gpus=request.gpus,
        milli=WHOLE if share is None else min(WHOLE, -(-share * WHOLE // gpu_memory_bytes)),
        cpus=request.cpus,
        memory_bytes=request.memory_bytes,
        gpu_models=request.gpu_models,
        min_gpu_memory_bytes=request.min_gpu_memory_bytes,
        max_gpu_memory_bytes=request.max_gpu_memory_bytes,
    )


def _losses(seen: Counter[Kind], total: int) -> Floats:
    """What is free less what is expected to be filled, by optimal stopping over ``CHANCES`` arrivals."""
    odds = np.zeros(STEPS + 1)
    for kind, count in seen.items():
        odds[-(-kind.milli // STEP)] += count / total
    sizes = np.flatnonzero(odds)
    free = np.arange(STEPS + 1)
    rest = free - sizes[:, None]
    fits, rest = rest >= 0, np.maximum(rest, 0)
    filled = np.zeros(STEPS + 1)
    for _ in range(CHANCES):
        taken = np.where(fits, sizes[:, None] * STEP + filled[rest], 0.0)
        filled = odds[sizes] @ np.maximum(taken, filled)
    return np.concatenate([[0.0], free * STEP - filled])


def _multi(seen: Counter[Kind], total: int) -> Floats:
    """Whole GPUs that stay usable for requests for several of them, times how often those come."""
    value = np.zeros(MOST_GPUS + 1)
    for kind, count in seen.items():
        if kind.gpus > 1:
            value[kind.gpus :] += count / total
    return value * WHOLE * np.arange(MOST_GPUS + 1)
