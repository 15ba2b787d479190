"""GPU measurements in the text format of Prometheus, under the names that NVIDIA's exporter uses.

Server and agents tell them alike, so dashboards made for that exporter show either. Absent values have no
line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remotegpu.types.hosts import ThrottleReason

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name, what it is, and its value out of a document with the names of ``GpuMetrics``."""

    name: str
    kind: str
    help: str
    value: Callable[[Mapping[str, Any]], float | None]


def _of(field: str, scale: float = 1.0) -> Callable[[Mapping[str, Any]], float | None]:
    def value(measured: Mapping[str, Any]) -> float | None:
        found = measured.get(field)
        return None if found is None else found * scale

    return value


def _free(measured: Mapping[str, Any]) -> float | None:
    total, used = measured.get("memory_total_bytes"), measured.get("memory_used_bytes")
    return None if total is None or used is None else (total - used) / MIB


_BITS = {
    ThrottleReason.IDLE: 1,
    ThrottleReason.APPLICATIONS_CLOCKS: 2,
    ThrottleReason.POWER_CAP: 4,
    ThrottleReason.HW_SLOWDOWN: 8,
    ThrottleReason.SYNC_BOOST: 16,
    ThrottleReason.SW_THERMAL: 32,
    ThrottleReason.HW_THERMAL: 64,
    ThrottleReason.HW_POWER_BRAKE: 128,
    ThrottleReason.DISPLAY_CLOCKS: 256,
}


def _throttle_bits(measured: Mapping[str, Any]) -> float | None:
    reasons = measured.get("throttle_reasons")
    return None if reasons is None else sum(_BITS.get(ThrottleReason(one), 0) for one in reasons)


GPU_FAMILIES = tuple(
    Family(f"DCGM_FI_{name}", kind, text, value)
    for name, kind, text, value in (
        ("DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", _of("utilization_percent")),
        ("DEV_MEM_COPY_UTIL", "gauge", "Memory utilization (in %).", _of("memory_utilization_percent")),
        ("DEV_ENC_UTIL", "gauge", "Encoder utilization (in %).", _of("encoder_utilization_percent")),
        ("DEV_DEC_UTIL", "gauge", "Decoder utilization (in %).", _of("decoder_utilization_percent")),
        ("DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).", _of("memory_used_bytes", 1 / MIB)),
        ("DEV_FB_FREE", "gauge", "Framebuffer memory free (in MiB).", _free),
        ("DEV_GPU_TEMP", "gauge", "GPU temperature (in C).", _of("temperature_c")),
        ("DEV_MEMORY_TEMP", "gauge", "Memory temperature (in C).", _of("memory_temperature_c")),
        ("DEV_POWER_USAGE", "gauge", "Power draw (in W).", _of("power_w")),
        ("DEV_POWER_MGMT_LIMIT", "gauge", "Power limit (in W).", _of("power_limit_w")),
        ("DEV_TOTAL_ENERGY_CONSUMPTION", "counter", "Energy since boot (in mJ).", _of("energy_j", 1000)),
        ("DEV_SM_CLOCK", "gauge", "SM clock frequency (in MHz).", _of("sm_clock_mhz")),
        ("DEV_MEM_CLOCK", "gauge", "Memory clock frequency (in MHz).", _of("memory_clock_mhz")),
        ("DEV_CLOCK_THROTTLE_REASONS", "gauge", "Bits of what throttles the clocks.", _throttle_bits),
        ("PROF_PCIE_TX_BYTES", "gauge", "Bytes per second sent over PCIe.", _of("pcie_tx_bytes_per_s")),
        ("PROF_PCIE_RX_BYTES", "gauge", "Bytes per second received.", _of("pcie_rx_bytes_per_s")),
        ("DEV_PCIE_REPLAY_COUNTER", "counter", "PCIe retries.", _of("pcie_replays")),
        ("PROF_NVLINK_TX_BYTES", "gauge", "Bytes per second sent.", _of("nvlink_tx_bytes_per_s")),
        ("PROF_NVLINK_RX_BYTES", "gauge", "Bytes per second received.", _of("nvlink_rx_bytes_per_s")),
        ("DEV_XID_ERRORS", "gauge", "The last XID error.", _of("xid")),
        ("DEV_ECC_SBE_VOL_TOTAL", "counter", "Corrected ECC errors since boot.", _of("ecc_corrected")),
        ("DEV_ECC_DBE_VOL_TOTAL", "counter", "Uncorrected ECC errors since boot.", _of("ecc_uncorrected")),
        ("DEV_UNCORRECTABLE_REMAPPED_ROWS", "counter", "Replaced rows of memory.", _of("remapped_rows")),
    )
)


def gpu_labels(*, index: int, uuid: str, product: str, hostname: str, simulated: bool) -> str:
    """The usual labels, and whether the GPU is simulated."""
    return labels(
        gpu=str(index),
        UUID=uuid,
        device=f"nvidia{index}",
        modelName=product,
        Hostname=hostname,
        simulated=str(simulated).lower(),
    )


def labels(**values: str) -> str:
    """``{name="value",…}``, escaped."""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items()) + "}"


def family(name: str, kind: str, text: str, rows: Iterable[tuple[str, float | None]]) -> Iterator[str]:
    """Lines of one metric, from labels and values; none where nothing was measured."""
    told = False
    for where, value in rows:
        if value is None:
            continue
        if not told:
            yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
            told = True
        yield f"{name}{where} {value:.12g}\n"


def gpus(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """All lines of GPUs, from their labels and what was measured of each; a piece a metric."""
    for one in GPU_FAMILIES:
        yield "".join(family(one.name, one.kind, one.help, ((where, one.value(doc)) for where, doc in rows)))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
