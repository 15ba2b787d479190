"""What a waiting request is told: the rule that binds, who is ahead, when, and what would start it now."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta

from remotegpu.types.environments import EnvironmentSpec
from remotegpu.types.queue import CounterOffer, EstimateBasis, StartEstimate, Wait
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
    for place, one in enumerate(snapshot.waiting, start=1):
        key = one.ask.id
        if only is not None and key not in only:
            continue
        ahead = snapshot.waiting[: place - 1]
        if one.request not in offers:
            offers[one.request] = counter_offers(one, snapshot, blockers(one, ahead, certain_s))
        estimate = _estimate(snapshot, likely.get(key), certain_s.get(key))
        answers[key] = Wait(
            rule=one.ask.message,
            position=place,
            ahead=ahead_in_words(one, ahead),
            estimate=estimate,
            estimate_note=None if estimate else _note(one, likely),
            counter_offers=offers[one.request],
            place_kept=one.kept is not None,
        )
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


def counter_offers(
    one: Waiting, snapshot: Snapshot, ahead: Sequence[placement.Request]
) -> list[CounterOffer]:
    """Up to three changes, each enough to start now, among those that a request can ask for."""
    changes = placement.smallest_changes(one.request, snapshot.open_to(one, snapshot.fleet), ahead=ahead)
    offers = [CounterOffer(fields=change.fields, message=change.message) for change in changes]
    return [offer for offer in offers if set(offer.fields) <= EnvironmentSpec.model_fields.keys()][:OFFERS]


def ahead_in_words(one: Waiting, ahead: Iterable[Waiting]) -> list[str]:
    """How many are ahead, by whose they are and what they ask for; never whose by name."""
    mine = one.ask
    groups: Counter[tuple[int, str]] = Counter()
    for other in ahead:
        row = other.ask
        whose = 0 if row.owner_id == mine.owner_id else 1 if row.customer_id == mine.customer_id else 2
        what = (words.either(row.gpu_models) or "any GPU model") if row.gpus else "CPU and memory"
        groups[whose, what] += 1
    of = ("of yours", "of your organisation", "of other customers")
    return [
        f"{count} {'request' if count == 1 else 'requests'} {of[whose]} "
        f"{'asks' if count == 1 else 'ask'} for {what}"
        for (whose, what), count in sorted(groups.items())
    ]
