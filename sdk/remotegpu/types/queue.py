"""Waiting for a turn: the answer that every waiting request gives."""

from __future__ import annotations

from remotegpu.types.wire import UtcTime, Wire, WireEnum


class EstimateBasis(WireEnum):
    """What an estimate rests on."""

    KNOWN_ENDS = "known_ends"
    """Stop times, lifetimes and ends of reservations alone."""
    PAST_RUNS = "past_runs"
    """Also on how long such work has run before."""
    UNKNOWN = "unknown"


class StartEstimate(Wire):
    """When a request is likely to start, as a range."""

    p50_at: UtcTime
    """As likely before as after."""
    p90_at: UtcTime
    """Nine times out of ten before."""
    basis: EstimateBasis


class CounterOffer(Wire):
    """A change to the request with which it would start now."""

    fields: dict[str, object]
    """The fields of the request that differ."""
    message: str


class Wait(Wire):
    """Why a request waits, how long, and what would start it now. Names nobody else."""

    rule: str
    """The rule that binds, in plain words."""
    position: int | None
    """1 is next; ``null`` while it waits for its own start time."""
    ahead: list[str]
    """Who is ahead: ``2 requests of other customers ask for A100-80GB``."""
    estimate: StartEstimate | None
    estimate_note: str | None
    """Why there is no estimate."""
    counter_offers: list[CounterOffer]
    """At most three, the smallest change first."""
    place_kept: bool
    """Its place is kept for a hub server, which the hub starts when its turn comes."""


class EstimateAccuracy(Wire):
    """How good the estimates were: first estimate of a start against the real one."""

    since: UtcTime
    starts: int
    median_error_s: float | None
    """Of the distance between ``p50_at`` and the start."""
    p90_error_s: float | None
    before_p90_percent: float | None
    """Starts that came before their ``p90_at``; 90 would be perfect."""
