"""The options form: what is free, what is left of the quota, and what would happen if it were sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader

from remotegpu import errors
from remotegpu.types.environments import PlacementExplanation, PlacementOutcome
from remotegpu.types.hosts import ModelCapacity
from remotegpu.types.images import Image
from remotegpu.types.quotas import QuotaLine
from remotegpu_spawner.errors import SpawnRefused, refusal
from remotegpu_spawner.launch import SILENT
from remotegpu_spawner.options import GIB, InvalidOption, from_form, parse
from remotegpu_spawner.progress import estimate_in_words

if TYPE_CHECKING:
    from remotegpu_spawner.spawner import RemoteGPUSpawner

_templates = Environment(
    loader=PackageLoader("remotegpu_spawner"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)

_RESOURCES = {
    "gpus": "GPUs",
    "gpu_hours": "GPU-hours",
    "environments": "Servers",
    "cpus": "CPUs",
    "memory_bytes": "Memory (GiB)",
    "storage_bytes": "Storage (GiB)",
    "tasks": "Tasks",
}
_WHOSE = {"user": "yours", "workspace": "your workspace's", "customer": "your organisation's"}
_NEARLY_USED_PERCENT = 80


async def render(spawner: RemoteGPUSpawner) -> str:
    """The form as HTML. Everything that came from elsewhere is escaped by the template."""
    client = spawner.client()
    try:
        capacity, quota, listed = await asyncio.gather(
            client.capacity.get(), client.quotas.mine(), spawner.images()
        )
    except errors.RemoteGPUError as error:
        return _templates.get_template("unavailable.html").render(error=str(error))
    images = await spawner.offered(listed)
    most = max((model.total for model in capacity.gpu_models), default=0)
    chosen = {
        "image": spawner.image,
        "gpu_models": spawner.gpu_models,
        "gpus": min(spawner.gpus, most),
        "cpus": f"{spawner.defaults.cpus:g}",
        "memory_gib": f"{spawner.defaults.memory_gib:g}",
    } | (spawner.user_options or spawner.orm_spawner.user_options or {})
    return _templates.get_template("options_form.html").render(
        images=[(image, label or _text(image)) for label, image in images],
        models=[(model, describe(model)) for model in capacity.gpu_models],
        free=" · ".join(describe(model) for model in capacity.gpu_models),
        capacity=capacity,
        chosen=chosen,
        quota=quota_bars(quota.lines),
        explain_url=f"{spawner.hub.base_url}remotegpu/explain",
        for_user=spawner.user.name,
    )


async def explain(spawner: RemoteGPUSpawner, query: Mapping[str, list[str]]) -> dict[str, Any]:
    """The answer for the live line of the form: by the rules of a start, without its effects."""
    client = spawner.client()
    try:
        wanted = parse(from_form(query), spawner.defaults)
        capacity, listed = await asyncio.gather(client.capacity.get(), spawner.images())
        models = [{"model": model.model, "text": describe(model)} for model in capacity.gpu_models]
        image = await spawner.chosen_image(wanted.image, listed)
        explained = await client.placements.explain(
            image=image.name,
            gpus=wanted.gpus,
            gpu_models=wanted.gpu_models,
            cpus=wanted.cpus,
            memory_bytes=wanted.memory_bytes,
        )
    except InvalidOption as error:
        return {"outcome": "refused", "message": str(error)}
    except SpawnRefused as error:
        return {"outcome": "refused", "message": error.jupyterhub_message}
    except SILENT as error:
        spawner.log.warning("the options form gets no explanation: %s", error)
        return {"outcome": "unknown", "message": "The RemoteGPU server does not answer at the moment."}
    except errors.ApiError as error:
        return {"outcome": "refused", "message": refusal(error).jupyterhub_message}
    return {
        "outcome": str(explained.outcome),
        "message": _sentence(explained),
        "home_note": explained.home_note,
        "prospects": _prospects(explained),
        "offers": _offers(explained),
        "models": models,
        "quota": quota_bars(explained.quota),
    }


def _sentence(explained: PlacementExplanation) -> str:
    if explained.outcome is PlacementOutcome.STARTS_NOW and explained.host_name:
        return f"Would start now on {explained.host_name}."
    if explained.outcome is PlacementOutcome.WAITS and explained.queue_position is not None:
        return f"Position {explained.queue_position} in the queue: {explained.message}"
    return explained.message


def _prospects(explained: PlacementExplanation) -> str:
    """When it would start, and behind whom."""
    wait = explained.wait
    if wait is None:
        return ""
    when = estimate_in_words(wait.estimate)
    lines = [f"Start {when}." if when else wait.estimate_note or ""]
    return " ".join([*lines, *(f"{line}." for line in wait.ahead)]).strip()


def _offers(explained: PlacementExplanation) -> list[dict[str, Any]]:
    """What would start now, as fields of this form; a click fills them in."""
    found = []
    for offer in explained.wait.counter_offers if explained.wait else []:
        fields = {_FORM_FIELDS[name]: value for name, value in offer.fields.items() if name in _FORM_FIELDS}
        if len(fields) == len(offer.fields):
            found.append(
                {
                    "message": offer.message,
                    "fields": {key: _form_value(key, one) for key, one in fields.items()},
                }
            )
    return found


_FORM_FIELDS = {
    "gpus": "gpus",
    "gpu_models": "gpu_model",
    "cpus": "cpus",
    "memory_bytes": "memory_gib",
}


def _form_value(name: str, value: Any) -> Any:
    if name == "gpu_model":
        return value[0] if value else ""
    return round(value / GIB, 2) if name == "memory_gib" else value


def _text(image: Image) -> str:
    name = image.display_name or image.name
    return f"{name} – {image.description}" if image.description else name  # noqa: RUF001


def describe(model: ModelCapacity) -> str:
    """The model with its free numbers, for the list of models."""
    simulated = ", simulated" if model.simulated else ""
    return f"{model.model} – {model.free} of {model.total} free{simulated}"  # noqa: RUF001


def quota_bars(lines: list[QuotaLine]) -> list[dict[str, Any]]:
    """One bar for each limit that binds and is measured."""
    return [
        _bar(line, line.limit, line.used)
        for line in lines
        if line.limit is not None and line.used is not None
    ]


def _bar(line: QuotaLine, limit: float, used: float) -> dict[str, Any]:
    scale = GIB if str(line.resource).endswith("_bytes") else 1
    limit, used = limit / scale, round(used / scale, 2)
    percent = min(100, round(100 * used / limit)) if limit else 100
    whose = _WHOSE.get(str(line.subject), "your organisation's")
    colour = "bg-danger" if percent >= 100 else "bg-warning" if percent >= _NEARLY_USED_PERCENT else ""
    return {
        "key": f"{line.subject}-{line.resource}",
        "label": _RESOURCES.get(str(line.resource), str(line.resource)),
        "whose": whose,
        "text": f"{used:g} of {limit:g} used" if limit else "none allowed",
        "percent": percent,
        "colour": colour,
    }
