"""What a waiting request is told: the rule that binds, who is ahead, when, and what would start it now."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta

from remotegpu.types.environments import EnvironmentSpec
from remotegpu.types.queue import CounterOffer, EstimateBasis, StartEstimate, Wait
from remotegpu.types.tasks import TaskSpec
from remotegpu_server import placement
from remotegpu_server.placement import words
from remotegpu_server.queue import simulation
from remotegpu_server.queue.snapshot import FORESEEN, Snapshot, Waiting, blockers

OFFERS = 3
TOO_FAR_BACK = f"More than {FORESEEN} requests are ahead; an estimate comes nearer to the front."
NOTHING_KNOWN = (
    "Nobody who holds what it needs has said until when, and too little such work has ended lately to tell "
    "by its length."
)
QUOTA_BINDS = "It starts when your own quota allows it; that depends on what you stop, not on the queue."


def outlooks(
    snapshot: Snapshot,
    past: simulation.PastRuns,
    certain_s: dict[str, float],
    *,
    only: frozenset[str] | None = None,
) -> dict[str, Wait]:
    """The answer by request: of all, or of ``only`` these."""
    front = snapshot.front()
    likely = simulation.likely_starts_s(front, snapshot.machines, past) if front else {}
    answers: dict[str, Wait] = {}
    offers: dict[placement.Request, list[CounterOffer]] = {}
    seen = Ahead()
    for place, one in enumerate(snapshot.waiting, start=1):
        key = one.ask.id
        if only is None or key in only:
            if one.request not in offers:
                ahead = snapshot.waiting[: place - 1]
                offers[one.request] = counter_offers(one, snapshot, blockers(one, ahead, certain_s))
            estimate = _estimate(snapshot, likely.get(key), certain_s.get(key))
            answers[key] = Wait(
                rule=one.ask.message,
                position=place,
                ahead=seen.in_words(one),
                estimate=estimate,
                estimate_note=None if estimate else _note(one, likely),
                counter_offers=offers[one.request],
                place_kept=one.kept is not None,
            )
        seen.add(one)
    return answers


def _estimate(
    snapshot: Snapshot, likely: tuple[float, float] | None, certain_s: float | None
) -> StartEstimate | None:
    if likely is None or math.isinf(likely[1]):
        return None
    p50_s, p90_s = likely
    basis = EstimateBasis.KNOWN_ENDS if p50_s == p90_s == certain_s else EstimateBasis.PAST_RUNS
    return StartEstimate(
        p50_at=snapshot.now + timedelta(seconds=p50_s),
        p90_at=snapshot.now + timedelta(seconds=p90_s),
        basis=basis,
    )


def _note(one: Waiting, likely: dict[str, tuple[float, float]]) -> str:
    if not one.holds_up:
        return QUOTA_BINDS
    return NOTHING_KNOWN if one.ask.id in likely else TOO_FAR_BACK


def counter_offers(one: Waiting, snapshot: Snapshot, ahead: Sequence[placement.Ahead]) -> list[CounterOffer]:
    """Up to three changes, each enough to start now, among those that a request can ask for."""
    changes = placement.smallest_changes(one.request, snapshot.open_to(one, snapshot.fleet), ahead=ahead)
    offers = [CounterOffer(fields=change.fields, message=change.message) for change in changes]
    known = EnvironmentSpec.model_fields.keys() | TaskSpec.model_fields.keys()
    return [offer for offer in offers if set(offer.fields) <= known][:OFFERS]


class Ahead:
    """How many are ahead, by whose they are and what they ask for; never whose by name.

    Kept while the queue is walked, so that a long one is walked once.
    """

    def __init__(self) -> None:
        self._all: Counter[str] = Counter()
        self._by_customer: dict[str, Counter[str]] = defaultdict(Counter)
        self._by_owner: dict[str, Counter[str]] = defaultdict(Counter)
        self._by_both: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def add(self, one: Waiting) -> None:
        """One more is ahead of those that follow."""
        row = one.ask
        what = (words.either(row.gpu_models) or "any GPU model") if row.gpus else "CPU and memory"
        for counted in (
            self._all,
            self._by_customer[row.customer_id],
            self._by_owner[row.owner_id],
            self._by_both[row.customer_id, row.owner_id],
        ):
            counted[what] += 1

    def in_words(self, one: Waiting) -> list[str]:
        """As the owner of ``one`` is told."""
        row = one.ask
        own = self._by_owner[row.owner_id]
        others_here = self._by_customer[row.customer_id] - self._by_both[row.customer_id, row.owner_id]
        groups = {
            "of yours": own,
            "of your organisation": others_here,
            "of other customers": self._all - own - others_here,
        }
        return [
            f"{count} {'request' if count == 1 else 'requests'} {whose} "
            f"{'asks' if count == 1 else 'ask'} for {what}"
            for whose, counted in groups.items()
            for what, count in sorted(counted.items())
        ]
