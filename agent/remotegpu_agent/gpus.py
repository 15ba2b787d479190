"""What the agent knows of GPUs, whoever measures them: NVML, or the simulation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Protocol

from remotegpu.types.agent import InventoryGpu
from remotegpu.types.hosts import ThrottleReason


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU, by its id on the host."""

    pid: int
    memory_bytes: int | None
    """Device memory it holds, where the driver tells."""
    utilization_percent: float | None = None
    """Of the GPU's compute units, since it was last asked for, where the driver tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSample:
    """One look at one GPU; ``None`` where the driver does not say."""

    uuid: str
    utilization_percent: float | None = None
    memory_utilization_percent: float | None = None
    encoder_utilization_percent: float | None = None
    decoder_utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    """Since the driver was loaded."""
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_reasons: tuple[ThrottleReason, ...] | None = None
    pcie_rx_bytes_per_s: float | None = None
    pcie_tx_bytes_per_s: float | None = None
    pcie_replays: float | None = None
    nvlink_rx_bytes_per_s: float | None = None
    nvlink_tx_bytes_per_s: float | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows: int | None = None
    """Rows of memory that were replaced after uncorrectable errors."""
    xid: int | None = None
    unhealthy_reason: str | None = None
    processes: tuple[GpuProcess, ...] = ()


GAUGES = (
    "utilization_percent",
    "memory_utilization_percent",
    "encoder_utilization_percent",
    "decoder_utilization_percent",
    "memory_used_bytes",
    "temperature_c",
    "memory_temperature_c",
    "power_w",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "pcie_rx_bytes_per_s",
    "pcie_tx_bytes_per_s",
    "nvlink_rx_bytes_per_s",
    "nvlink_tx_bytes_per_s",
)
"""Values of a sample that go up and down: mean and highest are kept of them."""


@dataclass(frozen=True, kw_only=True)
class GpuInventory:
    """The GPUs of the host, or why there are none."""

    gpus: list[InventoryGpu] = field(default_factory=list)
    driver_version: str | None = None
    cuda_version: str | None = None
    reason: str | None = None


class GpuProvider(Protocol):
    """Called from one thread at a time; a call may be slow, and never raises for a broken GPU."""

    def inventory(self) -> GpuInventory: ...

    def sample(self, *, held: frozenset[str], processes: bool) -> list[GpuSample]:
        """``held``: UUIDs that a workload has. ``processes``: also ask for process lists."""
        ...

    def check(self, uuid: str) -> str | None:
        """Test one GPU anew: ``None`` when it works, which ends what was held against it; else why not."""
        ...

    def close(self) -> None: ...


GIB = 2**30

# Boards whose driver reports less memory than the name people use, because ECC or firmware keeps some.
_MARKETED_GB = {
    "T4": 16, "L4": 24, "A10": 24, "A10G": 24, "A30": 24, "A40": 48, "L40": 48, "L40S": 48,
    "RTXA6000": 48, "RTX6000Ada": 48, "H200": 141, "GH200": 96, "B200": 192,
}  # fmt: skip

_FORM_FACTOR = re.compile(
    r"^(SXM\d?|PCIE|NVL|HBM\d\w?|GEFORCE|GENERATION|NVIDIA|TESLA|QUADRO|\d+GB)$", re.IGNORECASE
)


def marketed_gb(family: str) -> int | None:
    """Of a board whose name alone tells its memory."""
    return next((size for name, size in _MARKETED_GB.items() if name.lower() == family.lower()), None)


def short_model(product: str, memory_total_bytes: int) -> str:
    """``NVIDIA A100-SXM4-80GB`` -> ``A100-80GB``: family and memory, without vendor and form factor.

    The memory is the number in the name, else the marketed one of known boards, else whole GiB rounded up.
    """
    words = [word for word in re.split(r"[\s\-_/()]+", product) if word]
    family = "".join(word for word in words if not _FORM_FACTOR.match(word)) or "GPU"
    named = [int(word[:-2]) for word in words if re.fullmatch(r"\d+GB", word, re.IGNORECASE)]
    if family in _MARKETED_GB:
        size = _MARKETED_GB[family]
    else:
        size = named[-1] if named else math.ceil(memory_total_bytes / GIB)
    return f"{family}-{size}GB"
