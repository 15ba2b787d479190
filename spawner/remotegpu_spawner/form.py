"""The options form: what is free, what is left of the quota, and what would happen if it were sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jinja2

from remotegpu import errors
from remotegpu.types.environments import Environment, PlacementExplanation, PlacementOutcome, Reason
from remotegpu.types.hosts import Capacity, MigCapacity, ModelCapacity
from remotegpu.types.images import Image
from remotegpu.types.queue import Wait
from remotegpu.types.quotas import QuotaLine
from remotegpu.types.workspaces import MemberStatus
from remotegpu_spawner.errors import SpawnRefused, refusal
from remotegpu_spawner.launch import SILENT, kept, place_is_kept
from remotegpu_spawner.offers import offers_of
from remotegpu_spawner.options import GIB, InvalidOption, Options, from_form, parse
from remotegpu_spawner.progress import estimate_in_words

if TYPE_CHECKING:
    from remotegpu_spawner.spawner import RemoteGPUSpawner

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("remotegpu_spawner"), autoescape=True, trim_blocks=True, lstrip_blocks=True
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
        capacity, quota, listed, identity, existing = await asyncio.gather(
            client.capacity.get(),
            client.quotas.mine(),
            spawner.images(),
            client.me.get(),
            spawner.find(client),
        )
    except errors.RemoteGPUError as error:
        return _templates.get_template("unavailable.html").render(error=str(error))
    images = await spawner.offered(listed)
    return _templates.get_template("options_form.html").render(
        images=[(image, label or _text(image)) for label, image in images],
        models=models(capacity),
        profiles=profiles(capacity),
        share=share(capacity),
        capacity=capacity,
        chosen=_chosen(spawner, capacity),
        quota=quota_bars(quota.lines),
        workspaces=[one for one in identity.workspaces if one.member_status is MemberStatus.ACTIVE],
        lives_in=existing.workspace_id if existing else None,
        standing=_standing(existing),
        base_url=f"{spawner.hub.base_url}remotegpu/",
        for_user=spawner.user.name,
        for_server=spawner.name,
    )


def _standing(existing: Environment | None) -> str:
    """What became of an earlier request that went on without anybody waiting."""
    if existing is None:
        return ""
    if kept(existing):
        again = "Start takes the place over with its age as long as you ask for the same."
        return f"{place_is_kept(existing).jupyterhub_message} {again}"
    return existing.message if existing.reason is Reason.HUB_GAVE_UP else ""


def _chosen(spawner: RemoteGPUSpawner, capacity: Capacity) -> Options:
    """What is filled in: the last choice, else the site's default as far as there are GPUs."""
    most = max((model.total for model in capacity.gpu_models), default=0)
    defaults = replace(spawner.defaults, gpus=min(spawner.gpus, most))
    try:
        return parse(spawner.user_options or spawner.orm_spawner.user_options, defaults)
    except InvalidOption:
        return defaults  # kept by the hub from a start of long ago


async def explain(spawner: RemoteGPUSpawner, query: Mapping[str, list[str]]) -> dict[str, Any]:
    """The answer for the live line of the form: by the rules of a start, without its effects."""
    client = spawner.client()
    try:
        wanted = parse(from_form(query), spawner.defaults)
        capacity, listed, existing = await asyncio.gather(
            client.capacity.get(), spawner.images(), spawner.find(client)
        )
        image = await spawner.chosen_image(wanted.image, listed)
        workspace = existing.workspace_id if existing else wanted.workspace
        wanted = replace(wanted, image=image.name, workspace=workspace)
        explained = await client.placements.explain(**wanted.spec())
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
        "prospects": prospects(explained.wait),
        "offers": offers_of(explained.wait),
        "free": models(capacity) | profiles(capacity),
        "share": share(capacity),
        "quota": quota_bars(explained.quota),
    }


def _sentence(explained: PlacementExplanation) -> str:
    if explained.outcome is PlacementOutcome.STARTS_NOW and explained.host_name:
        return f"Would start now on {explained.host_name}."
    if explained.outcome is PlacementOutcome.WAITS and explained.queue_position is not None:
        return f"Position {explained.queue_position} in the queue: {explained.message}"
    return explained.message


def prospects(wait: Wait | None) -> str:
    """When it would start, and behind whom."""
    if wait is None:
        return ""
    when = estimate_in_words(wait.estimate)
    lines = [f"Start {when}." if when else wait.estimate_note or ""]
    return " ".join([*lines, *(f"{line}." for line in wait.ahead)]).strip()


def _text(image: Image) -> str:
    name = image.display_name or image.name
    return f"{name} – {image.description}" if image.description else name  # noqa: RUF001


def models(capacity: Capacity) -> dict[str, str]:
    """By model what of it is free; real and simulated GPUs are told apart."""
    found: dict[str, list[str]] = {}
    for one in capacity.gpu_models:
        found.setdefault(one.model, []).append(_free(one))
    return {model: f"{model} – {'; '.join(free)}" for model, free in found.items()}  # noqa: RUF001


def profiles(capacity: Capacity) -> dict[str, str]:
    """By MIG profile what of it is free."""
    found: dict[str, list[str]] = {}
    for one in capacity.mig_profiles:
        found.setdefault(one.profile, []).append(f"{_free(one)} ({one.model})")
    return {profile: f"{profile} – {'; '.join(free)}" for profile, free in found.items()}  # noqa: RUF001


def _free(kind: ModelCapacity | MigCapacity) -> str:
    return f"{kind.free} of {kind.total} free{', simulated' if kind.simulated else ''}"


def share(capacity: Capacity) -> dict[str, Any] | None:
    """The soft share that the fleet has now; ``None``: it has no GPU that could be shared."""
    if not capacity.gpu_models:
        return None
    largest = max(model.largest_free_share_bytes for model in capacity.gpu_models) / GIB
    text = f"the largest that is free now is {largest:g} GiB" if largest else "none is free now"
    return {"largest_gib": largest, "text": text}


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
    level = "full" if percent >= 100 else "nearly" if percent >= _NEARLY_USED_PERCENT else "free"
    return {
        "label": _RESOURCES.get(str(line.resource), str(line.resource)),
        "whose": whose,
        "text": f"{used:g} of {limit:g} used" if limit else "none allowed",
        "percent": percent,
        "level": level,
    }
