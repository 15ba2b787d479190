"""The options form: what is free, what is left of the quota, and what would happen if it were sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader

from remotegpu import errors
from remotegpu.types.hosts import Capacity, ModelCapacity
from remotegpu.types.images import Image
from remotegpu.types.quotas import QuotaLine
from remotegpu_spawner.options import GIB

if TYPE_CHECKING:
    from remotegpu_spawner.spawner import RemoteGPUSpawner

_templates = Environment(
    loader=PackageLoader("remotegpu_spawner"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)

_RESOURCES = {"gpus": "GPUs", "environments": "Servers", "cpus": "CPUs", "memory_bytes": "Memory (GiB)"}


async def render(spawner: RemoteGPUSpawner) -> str:
    """The form as HTML. Everything that came from elsewhere is escaped by the template."""
    client = spawner.client()
    try:
        capacity = await client.capacity.get()
        images = [image for image in (await client.images.list()).items if image.status == "active"]
        quota = await client.quotas.mine()
    except errors.RemoteGPUError as error:
        return _templates.get_template("unavailable.html").render(error=str(error))
    offered = await spawner.offered_images()
    last = spawner.user_options or {}
    return _templates.get_template("options_form.html").render(
        images=[image for image in images if _offered(image, offered)],
        models=[(model, describe(model)) for model in capacity.gpu_models],
        most_gpus=max((model.total for model in capacity.gpu_models), default=0),
        capacity=capacity,
        gpus=min(spawner.gpus, _most_at_once(capacity)),
        chosen={"image": spawner.image, "gpu_model": spawner.gpu_model, **last},
        cpus=spawner.defaults.cpus,
        memory_gib=spawner.defaults.memory_gib,
        quota=quota_bars(quota.lines),
        explain_url=f"{spawner.hub.base_url}remotegpu/explain",
        server_name=spawner.name,
    )


def describe(model: ModelCapacity) -> str:
    """``A100-80GB: 1 of 2 free (simulated)``."""
    simulated = " (simulated)" if model.simulated else ""
    return f"{model.model}: {model.free} of {model.total} free{simulated}"


def quota_bars(lines: list[QuotaLine]) -> list[dict[str, Any]]:
    """One bar for each limit that binds; a resource without a limit says so in one line."""
    bars = []
    for line in lines:
        scale = GIB if line.resource == "memory_bytes" else 1
        if line.limit is None and line.subject != "user":
            continue
        bars.append(
            {
                "label": _RESOURCES.get(str(line.resource), str(line.resource)),
                "whose": "yours" if line.subject == "user" else "your organisation's",
                "used": round(line.used / scale, 1),
                "limit": None if line.limit is None else round(line.limit / scale, 1),
                "percent": min(100, round(100 * line.used / line.limit))
                if line.limit
                else (100 if line.limit == 0 else 0),
            }
        )
    return bars


def _offered(image: Image, offered: list[str]) -> bool:
    return not offered or bool({image.id, image.name, image.reference} & set(offered))


def _most_at_once(capacity: Capacity) -> int:
    return max((model.total for model in capacity.gpu_models), default=0)
