"""From wire types to what a person reads. Pure: no input or output, no clock of its own.

Numbers become text here and nowhere else, so that a value the driver does not report says so in the card, in
the plain text and in the HTML alike, and never turns into a 0. The dictionaries are the card's wire format:
``static/dashboard.js`` draws them and knows no units.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypedDict

from remotegpu.types.environments import EnvironmentUsage, GpuSample, GpuUsage
from remotegpu.types.hosts import Capacity
from remotegpu.types.quotas import Quota, QuotaLine, QuotaResource, QuotaSubject

NOT_REPORTED = "not reported"
NO_GPU = "This environment has no GPU."
GIB = 2**30
MIB = 2**20
NEARLY_FULL = 0.8
QUOTA_LABELS = {
    QuotaResource.GPUS: "GPUs",
    QuotaResource.GPU_HOURS: "GPU-hours",
    QuotaResource.ENVIRONMENTS: "Environments",
    QuotaResource.CPUS: "CPUs",
    QuotaResource.MEMORY_BYTES: "Memory",
    QuotaResource.STORAGE_BYTES: "Storage",
}
_IN_BYTES = (QuotaResource.MEMORY_BYTES, QuotaResource.STORAGE_BYTES)
_SCOPES = {QuotaSubject.USER: "yours", QuotaSubject.WORKSPACE: "this workspace"}


class Meter(TypedDict):
    """A labelled bar. ``fraction`` is 0 to 1, or ``None`` where there is nothing to draw."""

    label: str
    text: str
    fraction: float | None


class QuotaMeter(Meter):
    """A limit. ``tone`` is ``ok``, ``near`` or ``full``."""

    scope: str
    tone: str


class Fact(TypedDict):
    """A value without a scale."""

    label: str
    text: str


class Point(TypedDict):
    """One point of a sparkline; a gap is ``None``."""

    age_s: float
    utilization: float | None
    memory: float | None


class GpuCard(TypedDict):
    """One GPU."""

    uuid: str
    model: str
    total: str
    simulated: bool
    utilization: Meter
    memory: Meter
    facts: list[Fact]
    history: list[Point]


class View(TypedDict):
    """Everything that the card shows."""

    state: str
    """``connecting``, ``live`` or ``stale``."""
    notice: str | None
    """What is wrong, for a person."""
    age_s: float | None
    """How old the values were when this was sent."""
    uptime_s: float | None
    simulated: bool
    quota: list[QuotaMeter]
    gpus: list[GpuCard]
    empty: str | None
    """Said in place of GPUs."""
    load: list[Meter]
    """CPU and memory of the environment."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is known: the last answers, and what went wrong since."""

    usage: EnvironmentUsage | None = None
    quota: Quota | None = None
    in_environment: bool = True
    """False: this program runs outside of any environment, so there is no usage to expect."""
    error: str | None = None
    age_s: float | None = None
    """Of the answers; ``None``: there has been none."""


def view(reading: Reading, *, now: datetime) -> View:
    """The card for a reading at a time."""
    usage = reading.usage
    gpus = [] if usage is None else [gpu_card(gpu) for gpu in usage.gpus]
    state = "stale" if reading.error else ("connecting" if reading.age_s is None else "live")
    return View(
        state=state,
        notice=None if reading.error is None else clean(reading.error),
        age_s=reading.age_s,
        uptime_s=_uptime_s(usage, now=now),
        simulated=any(gpu["simulated"] for gpu in gpus),
        quota=[] if reading.quota is None else quota_meters(reading.quota),
        gpus=gpus,
        empty=_empty(reading),
        load=[] if usage is None else _load(usage),
    )


def _empty(reading: Reading) -> str | None:
    if not reading.in_environment:
        return "This notebook does not run in a RemoteGPU environment."
    if reading.usage is not None and not reading.usage.gpus:
        return NO_GPU
    return None


def _uptime_s(usage: EnvironmentUsage | None, *, now: datetime) -> float | None:
    if usage is None or usage.started_at is None:
        return None
    return max(0.0, (now - usage.started_at).total_seconds())  # this host's clock may be behind the server's


def _load(usage: EnvironmentUsage) -> list[Meter]:
    cpu = NOT_REPORTED if usage.cpu_percent is None else f"{usage.cpu_percent / 100:.1f} in use"
    return [
        Meter(label="CPUs", text=cpu, fraction=None),
        _of_total("Memory", usage.memory_used_bytes, usage.memory_limit_bytes),
    ]


def gpu_card(gpu: GpuUsage) -> GpuCard:
    """One GPU with its meters and its last minutes."""
    now = gpu.now
    utilization = None if now is None else now.utilization_percent
    return GpuCard(
        uuid=gpu.uuid,
        model=clean(gpu.model),
        total=size(gpu.memory_total_bytes),
        simulated=gpu.simulated,
        utilization=Meter(
            label="Utilisation", text=_percent(utilization), fraction=_share(utilization, 100.0)
        ),
        memory=_of_total("Memory", None if now is None else now.memory_used_bytes, gpu.memory_total_bytes),
        facts=[
            Fact(label="Temperature", text=_unit(None if now is None else now.temperature_c, "°C")),
            Fact(label="Power", text=_power(gpu)),
        ],
        history=_history(gpu.history, memory_total_bytes=gpu.memory_total_bytes),
    )


def _power(gpu: GpuUsage) -> str:
    if gpu.now is None or gpu.now.power_w is None:
        return NOT_REPORTED
    if gpu.now.power_limit_w is None:
        return _unit(gpu.now.power_w, "W")
    return f"{gpu.now.power_w:.0f} of {gpu.now.power_limit_w:.0f} W"


def _history(samples: list[GpuSample], *, memory_total_bytes: int) -> list[Point]:
    if not samples:
        return []
    newest = samples[-1].at
    return [
        Point(
            age_s=max(0.0, (newest - sample.at).total_seconds()),
            utilization=_share(sample.utilization_percent, 100.0),
            memory=_share(sample.memory_used_bytes, memory_total_bytes),
        )
        for sample in samples
    ]


def quota_meters(quota: Quota) -> list[QuotaMeter]:
    """The caller's own limits, and those above them that bind at all."""
    return [
        _quota_meter(line, line.used)
        for line in quota.lines
        if line.resource in QUOTA_LABELS
        and line.used is not None
        and (line.limit is not None or line.subject is QuotaSubject.USER)
    ]


def _quota_meter(line: QuotaLine, used: float) -> QuotaMeter:
    fraction = None if line.limit is None else _share(used, line.limit)
    if line.limit is not None and used >= line.limit:
        tone = "full"
    else:
        tone = "near" if fraction is not None and fraction >= NEARLY_FULL else "ok"
    return QuotaMeter(
        label=QUOTA_LABELS[line.resource],
        text=_quota_text(line, used),
        fraction=1.0 if line.limit == 0 else fraction,
        scope=_SCOPES.get(line.subject, "whole team"),
        tone=tone,
    )


def _quota_text(line: QuotaLine, used: float) -> str:
    amount = size if line.resource in _IN_BYTES else number
    if line.limit is None:
        return f"{amount(used)}, unlimited"
    if line.limit == 0:
        return "none allowed" if used == 0 else f"{amount(used)} used, none allowed"
    if line.resource in _IN_BYTES:
        return size_of(used, line.limit)
    return f"{number(used)} of {number(line.limit)}"


def clean(text: str) -> str:
    """Without control characters: a host's words must not steer a terminal."""
    return "".join(character for character in text if character.isprintable())


def number(value: float) -> str:
    """At most one decimal, and none where it would be 0."""
    return f"{value:.1f}".removesuffix(".0")


def size(size_bytes: float) -> str:
    """In GiB, as GPU memory is sold; below one in MiB."""
    if size_bytes == 0 or size_bytes >= GIB:
        return f"{number(size_bytes / GIB)} GiB"
    return f"{size_bytes / MIB:.0f} MiB"


def size_of(used_bytes: float, total_bytes: float) -> str:
    """As in ``22 of 80 GiB``; each with its own unit where they differ."""
    used, total = size(used_bytes), size(total_bytes)
    return f"{used.removesuffix(' GiB')} of {total}" if total.endswith("GiB") else f"{used} of {total}"


def duration(seconds: float) -> str:
    """Coarse, as in ``3 h 12 min``."""
    total = int(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min"
    if total < 48 * 3600:
        return f"{total // 3600} h {total % 3600 // 60} min"
    return f"{total // 86400} d {total % 86400 // 3600} h"


def _percent(value: float | None) -> str:
    return NOT_REPORTED if value is None else f"{value:.0f} %"


def _unit(value: float | None, unit: str) -> str:
    return NOT_REPORTED if value is None else f"{value:.0f} {unit}"


def _share(value: float | None, total: float) -> float | None:
    if value is None or total <= 0:
        return None
    return round(min(1.0, max(0.0, value / total)), 4)


def _of_total(label: str, used: int | None, total: int) -> Meter:
    if used is None:
        return Meter(label=label, text=f"{NOT_REPORTED}, {size(total)} in all", fraction=None)
    return Meter(label=label, text=size_of(used, total), fraction=_share(used, total))


def capacity_rows(capacity: Capacity) -> list[list[str]]:
    """Model, memory, free and total GPUs, and the most that one environment could get."""
    return [
        [
            clean(model.model) + (" (simulated)" if model.simulated else ""),
            size(model.memory_total_bytes),
            f"{model.free} of {model.total}",
            str(model.largest_free_on_one_host),
        ]
        for model in capacity.gpu_models
    ]


def utc_now() -> datetime:
    """The time of this host, with its zone."""
    return datetime.now(tz=UTC)
