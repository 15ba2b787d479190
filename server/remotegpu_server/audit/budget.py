"""How many refusals are written down: all of normal life, and of a flood a few with a count."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

ANONYMOUS_PER_MINUTE = 60
"""For everybody without a token together, in one server process."""
ACTOR_PER_MINUTE = 300
"""For each known actor."""
_ACTORS = 1000


@dataclass
class _Bucket:
    tokens: float
    at: float
    left_out: int = 0


class RefusalBudget:
    """Token buckets in the memory of this process, one for strangers and one an actor."""

    def __init__(
        self, *, anonymous_per_minute: int = ANONYMOUS_PER_MINUTE, actor_per_minute: int = ACTOR_PER_MINUTE
    ) -> None:
        self._anonymous_per_minute = anonymous_per_minute
        self._actor_per_minute = actor_per_minute
        self._buckets: OrderedDict[str | None, _Bucket] = OrderedDict()

    def take(self, actor: str | None) -> int | None:
        """``None``: do not write it down. Otherwise the number of those left out since the last one."""
        per_minute = self._anonymous_per_minute if actor is None else self._actor_per_minute
        now = time.monotonic()
        bucket = self._buckets.setdefault(actor, _Bucket(tokens=per_minute, at=now))
        self._buckets.move_to_end(actor)
        if len(self._buckets) > _ACTORS:
            self._buckets.popitem(last=False)
        bucket.tokens = min(per_minute, bucket.tokens + (now - bucket.at) * per_minute / 60)
        bucket.at = now
        if bucket.tokens < 1:
            bucket.left_out += 1
            return None
        bucket.tokens -= 1
        left_out, bucket.left_out = bucket.left_out, 0
        return left_out
