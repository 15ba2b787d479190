"""Limits in words: what a refusal says, and when GPU-hours are there again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from remotegpu.errors import QuotaExceeded
from remotegpu.types.quotas import QuotaLine, QuotaResource, QuotaSubject
from remotegpu_server.db import tables
from remotegpu_server.placement import gib
from remotegpu_server.quotas.queries import Bound, Span, Subject

_UNITS = {
    QuotaResource.GPUS: "GPU",
    QuotaResource.GPU_HOURS: "GPU-hour",
    QuotaResource.ENVIRONMENTS: "environment",
    QuotaResource.CPUS: "CPU",
    QuotaResource.TASKS: "task",
}
_DISK_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that a request would pass."""

    subject: Subject
    resource: QuotaResource
    bound: Bound
    used: float
    requested: float
    retry_at: datetime | None = None

    @property
    def limit(self) -> int:
        assert self.bound.limit is not None
        return self.bound.limit


def exceeded(excess: Excess, *, own: Sequence[tables.Environment]) -> QuotaExceeded:
    """The typed error; ``own`` are environments of the person who asks that hold some of it."""
    return QuotaExceeded(
        detail(excess),
        hint=hint(excess, own=own),
        data={
            "subject": str(excess.subject.kind),
            "subject_id": excess.subject.id,
            "subject_name": excess.subject.name,
            "resource": str(excess.resource),
            "limit": excess.limit,
            "used": excess.used,
            "requested": excess.requested,
            "available": max(excess.limit - excess.used, 0),
            "window_s": excess.bound.window_s,
            "retry_at": None if excess.retry_at is None else excess.retry_at.isoformat(),
            "environments": [
                {"id": one.id, "name": one.name, "status": one.status, "gpus": one.gpus} for one in own
            ],
        },
    )


def detail(excess: Excess) -> str:
    """Whose limit it is, what is used of it, and what the request needs."""
    who = f"{str(excess.subject.kind).capitalize()} {excess.subject.name}"
    if excess.resource is QuotaResource.GPU_HOURS:
        return (
            f"{who} may use {amount(excess.resource, excess.limit)} in {span(excess.bound.window_s or 0)}; "
            f"{plain(excess.resource, excess.used)} {'is' if excess.used == 1 else 'are'} used."
        )
    if excess.resource is QuotaResource.STORAGE_BYTES:
        needs = f" and this request needs {disk(excess.requested)} more" if excess.requested else ""
        return (
            f"Homes of {excess.subject.kind} {excess.subject.name} may take {disk(excess.limit)} of disk; "
            f"{disk(excess.used)} are used{needs}."
        )
    return (
        f"{who} may hold {amount(excess.resource, excess.limit)} at once; "
        f"{plain(excess.resource, excess.used)} {'is' if excess.used == 1 else 'are'} in use and this "
        f"request needs {plain(excess.resource, excess.requested)} more."
    )


def hint(excess: Excess, *, own: Sequence[tables.Environment]) -> str:
    """What to do about it."""
    higher = "or ask for a higher limit with `remotegpu quota request`"
    if excess.resource is QuotaResource.GPU_HOURS:
        if excess.retry_at is None:
            return "Ask for less, or ask an admin for a higher limit."
        return f"Again from {clock(excess.retry_at)}, {higher}."
    if excess.resource is QuotaResource.STORAGE_BYTES:
        return (
            "Delete files where something of yours still runs, or a whole home that you do not need"
            f" (`remotegpu volume list`, `remotegpu volume delete`), {higher}."
        )
    if excess.requested > excess.limit:
        return f"Ask for at most {amount(excess.resource, excess.limit)}, or ask an admin for a higher limit."
    if not own:
        others = "workspace" if excess.subject.kind is QuotaSubject.WORKSPACE else "customer"
        return f"Others of your {others} hold it; wait, or ask an admin for a higher limit."
    names = ", ".join(f"{one.name} ({one.status}, {amount(QuotaResource.GPUS, one.gpus)})" for one in own)
    return f"Stop one of yours first: {names}."


def overrun(line: QuotaLine, *, limit: int, used: float) -> str:
    """What it means that more is used than allowed."""
    who = f"{str(line.subject).capitalize()} {line.subject_name}"
    has = f"{who} has {amount(line.resource, used)} and may have {plain(line.resource, limit)}."
    if line.resource is QuotaResource.GPU_HOURS:
        return f"{has} Nothing with GPUs starts; what runs is warned, and stopped after the grace."
    if line.resource is QuotaResource.STORAGE_BYTES:
        return f"{has} What runs goes on; nothing new starts until {disk(used - limit)} are freed."
    over = amount(line.resource, used - limit)
    return f"{has} What runs goes on; what is new is refused until {over} are given back."


def plain(resource: QuotaResource, value: float) -> str:
    """A number, with its unit only where it is not a count."""
    if resource is QuotaResource.STORAGE_BYTES:
        return f"{disk(value)} of storage"
    if resource is QuotaResource.MEMORY_BYTES:
        return f"{gib(int(value))} of memory"
    return f"{value:.1f}".removesuffix(".0") if resource is QuotaResource.GPU_HOURS else f"{value:g}"


def amount(resource: QuotaResource, value: float) -> str:
    """A number with its unit."""
    if resource not in _UNITS:
        return plain(resource, value)
    return f"{plain(resource, value)} {_UNITS[resource]}{'' if value == 1 else 's'}"


def disk(value: float) -> str:
    """Bytes in the unit that fits: homes are small and large."""
    for unit in _DISK_UNITS[:-1]:
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} {_DISK_UNITS[-1]}"


def span(seconds: float) -> str:
    """A window as a person says it."""
    if seconds % 86400 == 0:
        days = int(seconds // 86400)
        return "a day" if days == 1 else f"{days} days"
    return f"{seconds / 3600:g} hours"


def clock(when: datetime) -> str:
    """A time in UTC; the date only where it is needed."""
    today = datetime.now(tz=when.tzinfo).date()  # only for the words: the time itself is the database's
    return when.strftime("%H:%M UTC" if when.date() == today else "%Y-%m-%d %H:%M UTC")


def free_again_at(
    *, now: datetime, spans: Sequence[Span], window_s: int, limit_hours: float
) -> datetime | None:
    """The first moment at which less than the limit lies in the window, if nothing more is used until then.

    ``spans`` are the times a GPU was held, cut to the window that ends now. ``None``: the limit is 0.
    """
    if limit_hours <= 0:
        return None
    window = timedelta(seconds=window_s)
    to_lose = sum(one.seconds for one in spans) - limit_hours * 3600
    edges = sorted({edge for one in spans for edge in (one.start, one.stop)})
    for begin, end in pairwise(edges):
        held = sum(one.fraction for one in spans if one.start <= begin and one.stop >= end)
        lost = held * (end - begin).total_seconds()
        if held and lost > to_lose:
            minute = begin + timedelta(seconds=max(to_lose, 0) / held) + window
            return max(minute, now).replace(second=0, microsecond=0) + timedelta(minutes=1)
        to_lose -= lost
    return now
