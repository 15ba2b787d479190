"""Counter-offers of the server as fields of the options form; a click takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from remotegpu.types.queue import CounterOffer, Wait
from remotegpu_spawner.options import GIB, PART


class Offer(TypedDict):
    """What would start now."""

    message: str
    fields: dict[str, list[str]]
    """By name of the form's field, all its values; the other fields stay as they are."""


def offers_of(wait: Wait | None) -> list[Offer]:
    """Those that the form can ask for, the smallest change first."""
    found = [_offer(offer) for offer in wait.counter_offers] if wait else []
    return [offer for offer in found if offer is not None]


def _offer(offer: CounterOffer) -> Offer | None:
    fields: dict[str, list[str]] = {}
    for name, value in offer.fields.items():
        if name not in _FIELDS:
            return None
        fields |= _FIELDS[name](value)
    return {"message": offer.message, "fields": fields}


_FIELDS: dict[str, Callable[[Any], dict[str, list[str]]]] = {
    "gpus": lambda count: {"gpus": [str(count)]},
    "gpu_models": lambda models: {"gpu_models": [str(one) for one in models]},
    "gpu_memory_bytes": lambda share: {PART: ["share"], "gpu_memory_gib": [_gib(share)]},
    "mig_profile": lambda profile: {PART: ["mig"], "mig_profile": [str(profile)]},
    "cpus": lambda cpus: {"cpus": [f"{cpus:g}"]},
    "memory_bytes": lambda memory: {"memory_gib": [_gib(memory)]},
}


def _gib(amount: float) -> str:
    return f"{amount / GIB:g}"
