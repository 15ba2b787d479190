"""Cron expressions of five fields, and the next time that one names in a time zone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from remotegpu.errors import Invalid

_MONTHS = {
    "jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6,
    "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12,
}  # fmt: skip
_DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_PART = re.compile(r"(\*|[a-z0-9]+)(?:-([a-z0-9]+))?(?:/([0-9]{1,2}))?")
HORIZON = timedelta(days=8 * 366 + 1)
"""29 February comes within it, also around a year such as 2100."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    either_day: bool
    """Both kinds of days are restricted: one of the two is enough, as in every cron."""
    elapsed: bool
    """The hour begins with ``*``: it means every so often, whatever the clock is set to."""

    def _fits(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week

    def next_after(self, moment: datetime, zone: ZoneInfo) -> datetime | None:
        """The first time after ``moment``, in UTC; ``None``: it names no day that exists."""
        day = moment.astimezone(zone).date() - timedelta(days=1)  # a shifted time may be the next day's
        last = day + HORIZON
        while day < last:
            if self._fits(day):
                later = [at for at in self._times(day, zone) if at > moment]
                if later:
                    return min(later)
            day += timedelta(days=1)
        return None

    def _times(self, day: date, zone: ZoneInfo) -> Iterator[datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                yield from self._moments(datetime.combine(day, time(hour, minute)), zone)

    def _moments(self, clock: datetime, zone: ZoneInfo) -> Iterator[datetime]:
        """When the clock shows this: once, twice, or never."""
        first = clock.replace(tzinfo=zone).astimezone(UTC)
        if first.astimezone(zone).replace(tzinfo=None) != clock:
            if not self.elapsed:
                yield first  # left out: as if the clock had not been changed
            return
        yield first
        again = clock.replace(tzinfo=zone, fold=1).astimezone(UTC)
        if self.elapsed and again != first:
            yield again


def parse(text: str) -> Cron:
    """Raises :class:`Invalid` that names the field."""
    fields = text.lower().split()
    if len(fields) != len(_FIELDS):
        raise _wrong(text, "It needs five fields: minute, hour, day of the month, month, day of the week.")
    minutes, hours, days, months, weekdays = (
        _values(field, *known) for field, known in zip(fields, _FIELDS, strict=True)
    )
    return Cron(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=frozenset(days),
        months=frozenset(months),
        weekdays=frozenset(day % 7 for day in weekdays),
        either_day=not fields[2].startswith("*") and not fields[4].startswith("*"),
        elapsed=fields[1].startswith("*"),
    )


def _values(field: str, name: str, least: int, most: int, names: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise _wrong(part, f"That is no {name}.")
        first, last, step = match.groups()
        if first == "*":
            if last is not None:
                raise _wrong(part, f"That is no {name}.")
            begin, end = least, most
        else:
            begin = _number(first, name, least, most, names)
            end = begin if last is None else _number(last, name, least, most, names)
            if last is None and step is not None:
                end = most
        every = 1 if step is None else int(step)
        if every < 1 or end < begin:
            raise _wrong(part, f"That is no {name}.")
        found.update(range(begin, end + 1, every))
    return found


def _number(text: str, name: str, least: int, most: int, names: dict[str, int]) -> int:
    number = names.get(text, int(text) if text.isdecimal() else -1)
    if not least <= number <= most:
        raise _wrong(text, f"The {name} is {least} to {most}.")
    return number


def _wrong(text: str, why: str) -> Invalid:
    return Invalid(
        f"{text[:64]!r} is no cron expression. {why}",
        hint="Such as '30 2 * * mon-fri'.",
        data={"errors": [{"field": "cron", "message": why}]},
    )


def zone_of(name: str) -> ZoneInfo:
    """Raises :class:`Invalid` for a zone that the system does not know."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # a folder, a path, an unknown name
        raise Invalid(
            f"There is no time zone {name!r}.",
            hint="Give an IANA name, such as Europe/Berlin.",
            data={"errors": [{"field": "time_zone", "message": "unknown"}]},
        ) from error
