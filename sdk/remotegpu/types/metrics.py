"""What was measured over a time."""

from __future__ import annotations

from typing import ClassVar

from remotegpu.types.wire import Table, UtcTime, Wire, WireEnum


class Resolution(WireEnum):
    """What a report was made from."""

    SAMPLES = "samples"
    """Heartbeats; kept for a day."""
    MINUTES = "minutes"
    """Kept for 14 days."""
    HOURS = "hours"
    """Kept for a year."""
    UNKNOWN = "unknown"


class MetricOf(WireEnum):
    """What a value was measured of."""

    HOST = "host"
    GPU = "gpu"
    WORKLOAD = "workload"
    """Environments, and attempts of tasks."""
    UNKNOWN = "unknown"


class ScrapeTarget(Wire):
    """An agent that Prometheus can scrape, as its HTTP service discovery wants it."""

    targets: list[str]
    """``address:port``."""
    labels: dict[str, str]


class MetricPoint(Wire):
    """One value in one step. What nobody measured has no point."""

    at: UtcTime
    """Begin of the step."""
    of: MetricOf
    metric: str
    """A name of ``GpuMetrics``, ``HostMetrics`` or ``WorkloadMetrics``, with its unit."""
    gpu_uuid: str | None
    """``null`` where it is not about one GPU."""
    simulated: bool
    """Measured of simulated GPUs; they are never added to real ones."""
    mean: float
    highest: float | None
    """``null`` for a sum over several: their highest values need not have come together."""
    last: float


class MetricsReport(Table):
    """What was measured of a host, GPU, environment, task, workspace or customer.

    Of a workspace or customer: sums over what ran (CPU, memory, power), means of shares, temperatures and
    clocks, and ``gpus``, how many were measured.
    """

    ROWS: ClassVar[str] = "points"

    begin_at: UtcTime
    end_at: UtcTime
    step_s: int
    """As asked for, or longer where only longer steps are kept."""
    resolution: Resolution
    points: list[MetricPoint]
    """By time, then name."""
