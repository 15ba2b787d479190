"""Signals of GPUs, as far as their hosts measure them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remotegpu_server.alerts.signals.reading import GpuNow, Read, Reading, View, percent, signal


def _xid(one: GpuNow, sample: dict[str, Any]) -> float | None:
    """Of a GPU in service: one that is out, or that an admin has put back, has had its alert."""
    in_service = one.gpu.health == "healthy" and one.gpu.accepted_reason is None
    return float(sample.get("xid") or 0) if in_service else 0.0


def _ecc(one: GpuNow, sample: dict[str, Any]) -> float | None:
    in_service = one.gpu.health == "healthy" and one.gpu.accepted_reason is None
    counted = sample.get("ecc_uncorrected")
    return counted if in_service or counted is None else 0.0


_GPU_VALUES: dict[str, Callable[[GpuNow, dict[str, Any]], float | None]] = {
    "gpu_temperature_c": lambda _, sample: sample.get("temperature_c"),
    "gpu_memory_percent": lambda one, sample: percent(
        sample.get("memory_used_bytes"), one.gpu.memory_total_bytes
    ),
    "gpu_power_percent": lambda _, sample: percent(sample.get("power_w"), sample.get("power_limit_w")),
    "gpu_xid": _xid,
    "gpu_ecc_uncorrected": _ecc,
}


def _gpu_value(name: str) -> Read:
    async def read(view: View) -> list[Reading]:
        return [
            one.reading(None if one.sample is None else _GPU_VALUES[name](one, one.sample))
            for one in await view.gpus()
        ]

    return read


for _name, _unit, _most, _what, _advice in (
    (
        "gpu_temperature_c",
        "°C",
        150,
        "Temperature of the GPU.",
        "Look at fans, dust and the room; drain the host if it goes on.",
    ),
    (
        "gpu_memory_percent",
        "%",
        100,
        "Memory of the GPU in use.",
        "Its holder is near an out-of-memory error: a larger GPU or smaller batches help.",
    ),
    (
        "gpu_power_percent",
        "%",
        200,
        "Power as a share of the limit.",
        "It runs at its power cap, so slower than it could; raise the limit if the supply allows it.",
    ),
    (
        "gpu_xid",
        "",
        1000,
        "The last XID error of a GPU that is in service; 0: none.",
        "Look the code up in NVIDIA's XID list; check the GPU (`remotegpu gpu check`) before it breaks.",
    ),
    (
        "gpu_ecc_uncorrected",
        "",
        1e9,
        "Uncorrectable memory errors of a GPU that is in service, since its driver was loaded.",
        "Drain the host and reset the GPU; replace it when it comes back.",
    ),
):
    signal(name=_name, object_type="gpu", unit=_unit, maximum=_most, description=_what, advice=_advice)(
        _gpu_value(_name)
    )


@signal(
    name="gpu_unhealthy",
    object_type="gpu",
    unit="",
    maximum=1,
    description="1 where a GPU was taken out of service: its agent, its temperature or its absence said so.",
    advice="It takes no new work. Check it (`remotegpu gpu check`), or restore it when the cause is gone.",
)
async def gpu_unhealthy(view: View) -> list[Reading]:
    return [
        one.reading(float(one.gpu.health != "healthy"), one.gpu.health_reason or "")
        for one in await view.gpus()
    ]


@signal(
    name="gpu_metrics_missing",
    object_type="gpu",
    unit="",
    maximum=1,
    description="1 where an online host measures, but says nothing of a GPU that it has.",
    advice="The driver may be gone: `nvidia-smi` on the host tells.",
)
async def gpu_metrics_missing(view: View) -> list[Reading]:
    measuring = await view.samples()
    readings = []
    for one in await view.gpus():
        said = one.sample is not None and any(value is not None for value in one.sample.values())
        looked = one.host.id in measuring and one.host.connection == "online"
        expected = one.gpu.health != "missing" and one.gpu.mig_profile is None
        readings.append(one.reading(float(expected and not said) if looked else None))
    return readings
